"""Which copies of photographs `audit` finds, and how often it takes others for copies."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.data import photo_folder
from benchmarks.harness import Measurement, Options, say
from retrieval.audit import audit
from retrieval.encoders.resnet import ResNetEncoder
from retrieval.index import ImageIndex
from retrieval.search import Vectors
from retrieval.stores.base import Record

WEIGHTS = "weights/resnet18_to_layer3.pth"
PHOTOS, COPIED = 500, 40
FALSE_ALARMS = 0.01  # share of the photographs that another one is taken for a copy of


def cropped(share: float) -> Callable[[Image.Image], Image.Image]:
    """What leaves this share of each side, in the middle."""

    def crop(image: Image.Image) -> Image.Image:
        across, down = (round(side * (1 - share) / 2) for side in image.size)
        return image.crop((across, down, image.width - across, image.height - down))

    return crop


KINDS: dict[str, tuple[Callable[[Image.Image], Image.Image], str, int]] = {
    "WebP, quality 80": (lambda image: image, "webp", 80),
    "JPEG, quality 20": (lambda image: image, "jpg", 20),
    "half the size": (lambda image: image.resize((image.width // 2, image.height // 2)), "jpg", 95),
    "a quarter of the size": (lambda image: image.resize((image.width // 4, image.height // 4)), "jpg", 95),
    "cropped to 90 %": (cropped(0.9), "jpg", 95),
    "cropped to 75 %": (cropped(0.75), "jpg", 95),
    "mirrored": (ImageOps.mirror, "jpg", 95),
    "grey": (lambda image: image.convert("L"), "jpg", 95),
    "turned by 90°": (lambda image: image.rotate(90, expand=True), "jpg", 95),
}


def run(options: Options) -> list[Measurement]:
    """Copies of 40 of 500 photographs, of one kind at a time, by ResNet-18 to ``layer3``."""
    weights = None if options.data is None or options.smoke else options.data / WEIGHTS
    if weights is None or not weights.exists():
        say(f"duplicates: needs photographs and {WEIGHTS} in --data-root; left out")
        return []
    encoder = ResNetEncoder("resnet18", weights, "layer3", device="cpu")
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        folder = photo_folder(options, scratch, PHOTOS)
        photos = vectors_of(folder, encoder)
        nearest = np.partition(distances(photos[1]), 1, axis=1)[:, 1]  # the first is the image itself
        by_hand = float(np.quantile(nearest, FALSE_ALARMS))
        found = Measurement(f"copies of {COPIED} of {PHOTOS} photographs that audit finds", "of 40")
        threshold = Measurement(
            f"with --threshold {by_hand:.3f}, below which 1 % of the photographs have another", "of 40"
        )
        wrong = Measurement("pairs of different photographs that audit takes for copies", "pairs")
        for kind, (change, extension, quality) in KINDS.items():
            say(f"duplicates: {kind}")
            copies = scratch / kind.replace(" ", "_").replace("%", "")
            copies.mkdir()
            for path in sorted(folder.glob("*.jpg"))[:: PHOTOS // COPIED][:COPIED]:
                change(Image.open(path).convert("RGB")).save(copies / f"{path.stem}.{extension}", quality=quality)
            for measurement, given in ((found, None), (threshold, by_hand)):
                right, others = pairs_found(photos, vectors_of(copies, encoder), given)
                measurement.values[kind] = [right]
                if given is None:
                    wrong.values[kind] = [others]
    return [found, wrong, threshold]


def vectors_of(folder: Path, encoder: ResNetEncoder) -> tuple[list[Record], Vectors]:
    """The images of a folder and their vectors."""
    with ImageIndex.open(folder, encoder) as index:
        index.update(progress=True)
        return index.store.vectors()


def distances(vectors: Vectors) -> Vectors:
    """(N, D) -> (N, N): between all of them."""
    return np.sqrt(np.maximum(2 - 2 * vectors @ vectors.T, 0))


def pairs_found(
    photos: tuple[list[Record], Vectors], copies: tuple[list[Record], Vectors], threshold: float | None
) -> tuple[float, float]:
    """How many copies are found with their originals, and how many pairs of others."""
    renamed = [replace(record, path=f"copies/{record.path}") for record in copies[0]]
    findings, _ = audit([*photos[0], *renamed], np.concatenate([photos[1], copies[1]]), threshold=threshold)
    pairs = {frozenset((Path(one.path).stem, Path(one.other).stem)) for one in findings if one.kind != "label"}
    return sum(len(pair) == 1 for pair in pairs), sum(len(pair) == 2 for pair in pairs)
