"""MNIST's test images by a network that others taught, by those together, and by one of them on average."""

import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.data import mnist_root, mnist_test
from benchmarks.harness import REPOSITORY, Measurement, Options, say
from lightning_modules.checkpoint import load_classifier
from lightning_modules.cli import main
from lightning_modules.distillation import STUDENT, average
from lightning_modules.evaluation import evaluate
from lightning_modules.run import Run


def run(options: Options) -> list[Measurement]:
    """Train ``configs/mnist_best.yaml`` from several seeds."""
    root = mnist_root(options, "distilling")
    if root is None:
        return []
    torch.set_num_threads(options.threads)
    right = Measurement("MNIST's test images", "% right")
    took = Measurement("its training, teachers and all", "minutes", {"ours": []})
    for seed in range(1, 100 * options.repeats, 100):  # teachers have the seeds after it: none is trained twice
        with tempfile.TemporaryDirectory() as scratch:
            say(f"distilling: seed {seed}")
            scores, seconds = train(root, Path(scratch), seed)
        for name, accuracy in scores.items():
            right.values.setdefault(name, []).append(accuracy)
        took.values["ours"].append(seconds / 60)
    return [right, took]


def train(root: Path, scratch: Path, seed: int) -> tuple[dict[str, float], float]:
    """Train the recipe; returns accuracies in percent, and how many seconds training took."""
    fit = ["fit", "--config", str(REPOSITORY / "configs" / "mnist_best.yaml"), f"--data.root={root}"]
    with contextlib.redirect_stdout(sys.stderr):
        main([*fit, f"--seed_everything={seed}", f"--trainer.default_root_dir={scratch}"])
    runs = {folder.name: Run(folder) for folder in (scratch / "mnist_best" / "version_0").iterdir() if folder.is_dir()}
    test = mnist_test(root)
    found = {name: evaluate(load_classifier(each.best), test, 500) for name, each in runs.items()}
    student = found.pop(STUDENT)
    return {
        "ours": 100 * student.accuracy,
        "ensemble of its teachers": 100 * average(list(found.values())).accuracy,
        "a teacher, on average": 100 * statistics.mean(each.accuracy for each in found.values()),
    }, sum(each.summary["seconds"] for each in runs.values())
