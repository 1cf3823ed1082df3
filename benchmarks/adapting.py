"""What a network learns from 20 corrected pictures of one writer, and what it forgets of MNIST."""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from benchmarks.data import mnist_root, mnist_test
from benchmarks.harness import REPOSITORY, Measurement, Options, run_process, say
from datamodules import strokes
from datamodules.image_files import ImageFileDataset
from lightning_modules.checkpoint import load_classifier
from lightning_modules.classifier import Classifier
from lightning_modules.embedded import EMBEDDED
from lightning_modules.evaluation import evaluate

WRITERS, CORRECTED = 3, 20
PICTURES = 160  # that a writer draws for the network to get wrong, and as many to be scored
TRIED = 50  # of whom some are read too well to have 20 pictures corrected
FIRST = 200  # the settings were chosen on writers with smaller numbers


def run(options: Options) -> list[Measurement]:
    """Adapt the network that comes with the package by ``configs/adapt.yaml``, to three writers with odd digits."""
    root = mnist_root(options, "adapt")
    if root is None:
        return []
    torch.set_num_threads(options.threads)
    official = mnist_test(root)
    base = load_classifier(EMBEDDED)
    known = 100 * evaluate(base, official, 500).accuracy
    errors = Measurement(f"a writer's other {PICTURES} pictures, {CORRECTED} corrected", "% wrong", {})
    accuracy = Measurement("MNIST's test images after it", "% right", {})
    seconds = Measurement("adapting, from start to end of the process", "s", {})
    for writer in range(FIRST, FIRST + TRIED):
        if len(seconds.values.get("ours", [])) == WRITERS:
            break
        with tempfile.TemporaryDirectory() as scratch:
            paths, labels = draw_writer(writer, Path(scratch) / "drawn")
            wrong = np.flatnonzero(~right(base, paths[:PICTURES], labels[:PICTURES]))[:CORRECTED]
            if len(wrong) < CORRECTED:
                continue
            for row in wrong:
                place = Path(scratch) / "corrections" / str(labels[row]) / paths[row].name
                place.parent.mkdir(parents=True, exist_ok=True)
                paths[row].rename(place)
            command = ["-m", "lightning_modules", "fit", "--config", str(REPOSITORY / "configs" / "adapt.yaml")]
            where = [f"--data.root={scratch}/corrections", f"--trainer.default_root_dir={scratch}"]
            replay = ["--data.replay=MNISTDataModule", f"--data.replay.root={root}"]
            finished = run_process([*command, f"--ckpt_path={EMBEDDED}", *where, *replay], options.threads)
            adapted = load_classifier(Path(scratch) / "adapt" / "version_0" / "checkpoints" / "best.ckpt")
            others = paths[PICTURES:], labels[PICTURES:]
            for name, model in (("ours", adapted), ("before", base)):
                errors.values.setdefault(name, []).append(100 * float(1 - right(model, *others).mean()))
        accuracy.values.setdefault("ours", []).append(100 * evaluate(adapted, official, 500).accuracy)
        accuracy.values.setdefault("before", []).append(known)
        seconds.values.setdefault("ours", []).append(finished.seconds)
        say(f"writer {writer}: {[one.values[name][-1] for one in (errors, accuracy) for name in one.values]}")
    return [errors, accuracy, seconds]


def draw_writer(writer: int, folder: Path) -> tuple[list[Path], npt.NDArray[np.int64]]:
    """Pictures by someone who writes each digit in one form, with pens of his own, of forms not trained on."""
    generator = np.random.default_rng([2, writer])
    forms = [[of_digit[generator.integers(len(of_digit))]] for of_digit in strokes.HURRIED]
    pens = generator.uniform(0.07, 0.11, 3)
    images, labels = strokes.draw_digits(generator, 2 * PICTURES, 56, 0.7, pens, forms)
    folder.mkdir()
    paths = [folder / f"{row}.png" for row in range(len(images))]
    for path, pixels in zip(paths, images, strict=True):
        Image.fromarray(255 - pixels).save(path)
    return paths, labels


@torch.inference_mode()
def right(model: Classifier, paths: list[Path], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """(N,), bool: which pictures a network classifies right, as ``predict`` does."""
    files = ImageFileDataset(paths, model.image_size, model.in_channels, model.normalizer)
    answers: npt.NDArray[np.bool_] = model(files.batch(range(len(files))).images).argmax(1).numpy() == labels
    return answers
