"""What is found of rare classes: digits of MNIST of which there are fifty times fewer, by the official test images."""

import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import MNIST

from benchmarks.data import mnist_root, mnist_test, write_draw
from benchmarks.harness import REPOSITORY, Measurement, Options, say
from lightning_modules.checkpoint import load_classifier
from lightning_modules.cli import main
from lightning_modules.evaluation import evaluate

COMMON, RARE = 200, 4  # images a class: 1:50
DRAWS = 3
SETTINGS = {
    "as they are": [],
    "class_weights auto": ["--model.class_weights=auto"],
    "balance": ["--data.balance=true"],
}


def run(options: Options) -> list[Measurement]:
    """Train ``configs/custom_cnn.yaml`` where three digits are rare, by three draws of them and of the images."""
    root = mnist_root(options, "imbalance")
    if root is None:
        return []
    torch.set_num_threads(options.threads)
    images = MNIST(str(root))
    test = mnist_test(root)
    each = f"{COMMON} and {RARE} images a class of MNIST, {DRAWS} draws"
    recall = Measurement(f"recall of the rare classes, {each}", "%", {})
    accuracy = Measurement(f"accuracy, {each}", "% of test images right", {})
    for draw in range(DRAWS):
        rare = np.random.default_rng(draw).permutation(10)[:3]
        counts = {digit: RARE if digit in rare else COMMON for digit in range(10)}
        with tempfile.TemporaryDirectory() as scratch:
            folder = write_draw(images, draw, counts, Path(scratch) / "images")
            for name, setting in SETTINGS.items():
                fit = ["fit", "--config", str(REPOSITORY / "configs" / "custom_cnn.yaml")]
                where = ["--data=ImageFolderDataModule", f"--data.root={folder}", "--data.image_size=28"]
                said = [f"--seed_everything={draw}", f"--trainer.default_root_dir={scratch}", f"--name={name}"]
                with contextlib.redirect_stdout(sys.stderr):
                    main([*fit, "--model.width=16", *where, *said, *setting])
                model = load_classifier(Path(scratch) / name / "version_0" / "checkpoints" / "best.ckpt")
                found = evaluate(model, test, 500)
                of_rare = torch.isin(found.labels, torch.from_numpy(rare))
                recall.values.setdefault(name, []).append(100 * found.right[of_rare].float().mean().item())
                accuracy.values.setdefault(name, []).append(100 * found.accuracy)
                say(f"draw {draw + 1}, {name}: {recall.values[name][-1]:.2f} %, {accuracy.values[name][-1]:.2f} %")
    return [recall, accuracy]
