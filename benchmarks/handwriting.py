"""The network that comes with the package, on pictures of digits as people have them, and of what is no digit."""

import string
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.font_manager import findSystemFonts
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torchvision.datasets import MNIST

from benchmarks.harness import Measurement, Options, say
from datamodules.image_files import ImageFileDataset
from datamodules.images import find_images
from lightning_modules.answers import refusal
from lightning_modules.calibration import expected_calibration_error
from lightning_modules.checkpoint import load_classifier
from lightning_modules.embedded import EMBEDDED

OWN = ("DejaVu", "STIX", "cm")  # how the names of the fonts begin that were trained on
LETTERS = 600


@torch.inference_mode()
def answers(paths: list[Path], normalized: bool = True) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """(N, 10) probabilities, (N,) scores and the reasons against, of files."""
    model = load_classifier(EMBEDDED)
    assert model.normalizer is not None
    files = ImageFileDataset(paths, model.image_size, model.in_channels, model.normalizer if normalized else None)
    logits = torch.cat([model(files.batch(range(s, min(s + 64, len(files)))).images) for s in range(0, len(files), 64)])
    scores = model.calibration.familiarity(logits)
    scores = torch.where(torch.tensor([files.digits[row] == 1 for row in range(len(files))]), scores, 0.0)
    reasons = [refusal(files.digits[row], score) for row, score in enumerate(scores.tolist())]
    return model.calibration.probabilities(logits), scores, reasons


def run(options: Options) -> list[Measurement]:
    """Accuracy by collection, confidence, and what is refused."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        root = None if options.data is None or options.smoke else options.data / "data"
        paths = (
            find_images(root / "handwriting" / "digits") if root is not None else draw_digits(Path(scratch) / "drawn")
        )
        results = digits(paths)
        if root is not None and (root / "MNIST").is_dir():
            results.append(mnist(root, Path(scratch) / "mnist"))
        results += others(root, Path(scratch), answers(paths)[1])
    return results


def digits(paths: list[Path]) -> list[Measurement]:
    """Pictures at HAND/LABEL/FILE."""
    started = time.perf_counter()
    probabilities, _, reasons = answers(paths)
    seconds = time.perf_counter() - started
    resized, _, _ = answers(paths, normalized=False)
    labels = torch.tensor([int(path.parent.name) for path in paths])
    rows = defaultdict(list)
    for row, path in enumerate(paths):
        rows[path.parent.parent.name].append(row)
    rows["all"] = list(range(len(paths)))
    right = {"ours": probabilities.argmax(1) == labels, "resized, no more": resized.argmax(1) == labels}
    results = [
        Measurement(
            f"{hand}, {len(chosen)} pictures",
            "% right",
            {name: [100 * found[chosen].float().mean().item()] for name, found in right.items()},
            f"{int((~right['ours'][chosen]).sum())} wrong",
        )
        for hand, chosen in rows.items()
    ]
    error = {"ours": [100 * expected_calibration_error(probabilities, labels)]}
    refused = {"ours": [100 * float(np.mean([bool(reason) for reason in reasons]))]}
    taken = {"ours": [1e3 * seconds / len(paths)]}
    return [
        *results,
        Measurement("expected calibration error", "%", error),
        Measurement("digits that are refused", "%", refused),
        Measurement("a picture", "ms", taken, "decoded, normalised and classified"),
    ]


def mnist(root: Path, folder: Path) -> Measurement:
    """MNIST's test images as files."""
    folder.mkdir()
    images = MNIST(str(root), train=False)
    paths = [folder / f"{row:05d}.png" for row in range(len(images))]
    for path, pixels in zip(paths, images.data.numpy(), strict=True):
        Image.fromarray(pixels).save(path)
    probabilities, _, reasons = answers(paths)
    right = 100 * (probabilities.argmax(1) == images.targets).float().mean().item()
    error = 100 * expected_calibration_error(probabilities, images.targets)
    refused = 100 * float(np.mean([bool(reason) for reason in reasons]))
    note = f"calibration error {error:.2f} %, {refused:.2f} % refused"
    return Measurement("MNIST's test images as PNGs", "% right", {"ours": [right]}, note)


def others(root: Path | None, scratch: Path, known: torch.Tensor) -> list[Measurement]:
    """How well letters, photographs and blanks are told from digits, whose scores are known."""
    kinds = {"letters of other fonts": draw_letters(scratch / "letters"), "blanks": draw_blanks(scratch / "blanks")}
    if root is not None and (root / "photos").is_dir():
        kinds["photographs"] = find_images(root / "photos")
    results = []
    for kind, paths in kinds.items():
        if not paths:
            continue
        _, scores, reasons = answers(paths)
        truth = [1] * len(known) + [0] * len(scores)
        area = roc_auc_score(truth, torch.cat([known, scores]).numpy())
        refused = 100 * float(np.mean([bool(reason) for reason in reasons]))
        results.append(Measurement(f"{kind}, {len(paths)}", "% refused", {"ours": [refused]}, f"AUROC {area:.4f}"))
    return results


def draw_digits(folder: Path) -> list[Path]:
    """Some of scikit-learn's digits, dark on light and large, at HAND/LABEL/FILE."""
    found = load_digits()
    paths = []
    for row in range(20):
        path = folder / "sklearn" / str(found.target[row]) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = Image.fromarray((255 - found.images[row] * 15).astype(np.uint8))
        pixels.resize((160, 160), Image.Resampling.BICUBIC).save(path)
        paths.append(path)
    return paths


def draw_letters(folder: Path) -> list[Path]:
    """Letters of this machine's fonts, but for those trained on: which, differs from machine to machine."""
    fonts = sorted(path for path in findSystemFonts() if not any(Path(path).stem.startswith(own) for own in OWN))
    if not fonts:
        say("no fonts but those trained on are installed; letters are left out")
        return []
    folder.mkdir()
    generator = np.random.default_rng(0)
    paths = []
    for number in range(LETTERS):
        letter = string.ascii_letters[generator.integers(52)]
        try:
            font = ImageFont.truetype(fonts[generator.integers(len(fonts))], int(generator.integers(60, 160)))
        except OSError:  # a bitmap font
            continue
        image = Image.new("L", (220, 220), 255)
        ImageDraw.Draw(image).text((110, 110), letter, font=font, fill=int(generator.integers(80)), anchor="mm")
        paths.append(folder / f"{number}-{ord(letter)}.png")
        image.save(paths[-1])
    return paths


def draw_blanks(folder: Path) -> list[Path]:
    """Paper that nothing is on: even, with grain, in a shadow, ruled."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    paths = []
    for number in range(40):
        side = int(generator.integers(20, 600))
        paper = np.full((side, side), generator.uniform(0, 255))
        paper += [0, 1, 1, 1][number % 4] * generator.normal(0, generator.uniform(1, 8), paper.shape)
        if number % 4 == 2:
            paper *= np.linspace(1, generator.uniform(0.5, 0.9), side)
        if number % 4 == 3 and side > 100:
            paper[:: side // 12] -= 60
        paths.append(folder / f"{number}.png")
        Image.fromarray(paper.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths
