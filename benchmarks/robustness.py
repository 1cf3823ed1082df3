"""MNIST-C, images to which fifteen things have happened: by the recipe for MNIST, and by one that trains for it."""

import contextlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import MNIST

from benchmarks.harness import REPOSITORY, Measurement, Options, say
from lightning_modules.checkpoint import load_classifier
from lightning_modules.classifier import Classifier
from lightning_modules.cli import main

RECIPES = ("mnist", "mnist_robust")


def run(options: Options) -> list[Measurement]:
    """Train ``configs/mnist.yaml`` and ``configs/mnist_robust.yaml``, and score the official test images, corrupted."""
    if options.data is None or options.smoke:
        say("robustness: needs MNIST in --data-root; left out")
        return []
    from benchmarks.corruptions import CORRUPTIONS, corrupt

    torch.set_num_threads(options.threads)
    root = options.data / "data"
    test = MNIST(str(root), train=False)
    with tempfile.TemporaryDirectory() as scratch:
        models = {name: train(name, root, Path(scratch)) for name in RECIPES}
    pixels = test.data.numpy()
    results = [Measurement("test images as they are", "% right", score(models, pixels, test.targets))]
    for corruption in CORRUPTIONS:
        what = corruption.__name__.replace("_", " ")
        say(f"robustness: {what}")
        results.append(Measurement(what, "% right", score(models, corrupt(pixels, corruption), test.targets)))
    mean = {name: [float(np.mean([each.values[name] for each in results[1:]]))] for name in RECIPES}
    return [*results, Measurement(f"mean of the {len(CORRUPTIONS)}", "% right", mean)]


def train(name: str, root: Path, scratch: Path) -> Classifier:
    """Train a recipe; returns its best network."""
    fit = ["fit", "--config", str(REPOSITORY / "configs" / f"{name}.yaml"), f"--data.root={root}"]
    with contextlib.redirect_stdout(sys.stderr):
        main([*fit, f"--trainer.default_root_dir={scratch}"])
    return load_classifier(scratch / name / "version_0" / "checkpoints" / "best.ckpt")


@torch.inference_mode()
def score(
    models: dict[str, Classifier], pixels: np.typing.NDArray[np.uint8], labels: torch.Tensor
) -> dict[str, list[float]]:
    """What share of (N, 28, 28), uint8, images each network has right, in percent."""
    parts = torch.split(torch.from_numpy(pixels)[:, None], 500)
    return {
        name: [100 * (torch.cat([model(part) for part in parts]).argmax(1) == labels).float().mean().item()]
        for name, model in models.items()
    }
