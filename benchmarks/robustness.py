"""MNIST-C, images to which fifteen things have happened: by the recipe for MNIST, and by one that trains for it."""

import contextlib
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.data import mnist_root, mnist_test
from benchmarks.harness import REPOSITORY, Measurement, Options, say
from datamodules.dataset import ImageDataset
from lightning_modules.checkpoint import load_classifier
from lightning_modules.classifier import Classifier
from lightning_modules.cli import main
from lightning_modules.evaluation import evaluate

RECIPES = ("mnist", "mnist_robust")


def run(options: Options) -> list[Measurement]:
    """Train ``configs/mnist.yaml`` and ``configs/mnist_robust.yaml``, and score the official test images, corrupted."""
    root = mnist_root(options, "robustness")
    if root is None:
        return []
    from benchmarks.corruptions import CORRUPTIONS, corrupt

    torch.set_num_threads(options.threads)
    test = mnist_test(root)
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: train(name, root, Path(scratch)) for name in RECIPES}
    results = [score("test images as they are", models, test)]
    for corruption in CORRUPTIONS:
        changed = replace(test.collection, pixels=corrupt(test.collection.pixels[:, 0], corruption)[:, None])
        results.append(score(corruption.__name__.replace("_", " "), models, ImageDataset(changed, test.rows)))
    mean = {name: [float(np.mean([each.values[name] for each in results[1:]]))] for name in RECIPES}
    return [*results, Measurement(f"mean of the {len(CORRUPTIONS)}", "% right", mean)]


def train(name: str, root: Path, scratch: Path) -> Classifier:
    """Train a recipe; returns its best network."""
    fit = ["fit", "--config", str(REPOSITORY / "configs" / f"{name}.yaml"), f"--data.root={root}"]
    with contextlib.redirect_stdout(sys.stderr):
        main([*fit, f"--trainer.default_root_dir={scratch}"])
    return load_classifier(scratch / name / "version_0" / "checkpoints" / "best.ckpt")


def score(what: str, models: dict[str, Classifier], images: ImageDataset) -> Measurement:
    """What share of the images each network has right."""
    say(f"robustness: {what}")
    return Measurement(what, "% right", {name: [100 * evaluate(models[name], images, 500).accuracy] for name in models})
