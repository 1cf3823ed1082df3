"""Training: the same work, and the same goal."""

import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.data import digit_folder
from benchmarks.harness import REPOSITORY, Finished, Measurement, Options, has, in_turn, run_process, say

CLOCK = "benchmarks.clock.Clock"


def ours(config: str, options: Options, scratch: Path, *args: str, test: bool = False) -> Finished:
    """A whole ``fit`` of one of our recipes."""
    path = REPOSITORY / "configs" / f"{config}.yaml"
    callbacks = [{"class_path": CLOCK, "init_args": {"test": test}}]
    callbacks += yaml.safe_load(path.read_text())["trainer"].get("callbacks", [])
    command = ["-m", "lightning_modules", "fit", "--config", str(path), "--trainer.callbacks", json.dumps(callbacks)]
    return run_process([*command, "--trainer.default_root_dir", str(scratch / "runs"), *args], options.threads)


def peer(name: str, network: str, folder: Path, options: Options, epochs: int, seed: int = 42) -> Finished:
    """A whole training by ``peers/NAME.py``."""
    command = ["-m", f"benchmarks.peers.{name}", network, str(folder), "--epochs", f"{epochs}", "--seed", f"{seed}"]
    return run_process(command, options.threads)


def on_folder(config: str, folder: Path, *args: str) -> list[str]:
    """The options that put one of our recipes on a folder of digits."""
    chosen = ["--data", "ImageFolderDataModule"] if config == "custom_cnn" else []
    return [*chosen, "--data.root", str(folder), *args]


def epoch_seconds(finished: Finished) -> float:
    """Median of the epochs after the first, which warms up."""
    rows = finished.rows[1:] or finished.rows
    return statistics.median(row["epoch_seconds"] for row in rows)


def seconds_to(finished: Finished, accuracy: float, key: str = "val_accuracy") -> float:
    """Seconds from the start of the process to the end of the first epoch that is this accurate; else infinite."""
    return next((row["seconds"] for row in finished.rows if row[key] >= accuracy), float("inf"))


def same_work(options: Options) -> list[Measurement]:
    """An epoch of the reference's CNN by its recipe."""
    epochs = 1 if options.smoke else 2
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        folder = digit_folder(options, scratch)
        contestants: dict[str, Callable[[], float]] = {
            "ours": lambda: epoch_seconds(
                ours("reference_cnn", options, scratch, *on_folder("", folder, "--trainer.max_epochs", f"{epochs}"))
            )
        }
        if not options.smoke:
            contestants["plain Lightning"] = lambda: epoch_seconds(
                peer("plain_lightning", "cnn", folder, options, epochs)
            )
        if not options.smoke and has("keras"):
            contestants["Keras"] = lambda: epoch_seconds(peer("keras_reference", "cnn", folder, options, epochs))
        return [in_turn(Measurement("an epoch of ReferenceCNN", "s"), contestants, options.repeats)]


def same_goal(options: Options) -> list[Measurement]:
    """Seconds from process start to an accuracy: digits of a folder, and MNIST's test set."""
    measured: dict[str, list[Finished]] = {}
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        folder = digit_folder(options, scratch)
        for turn in range(options.repeats):
            runs: dict[str, Callable[[], Finished]] = {
                "ours": partial(
                    ours, "custom_cnn", options, scratch, *on_folder("custom_cnn", folder), *_seed(turn, options)
                )
            }
            if not options.smoke:
                runs["plain Lightning"] = partial(peer, "plain_lightning", "cnn", folder, options, 20, turn + 1)
                if has("keras"):
                    runs["Keras"] = partial(peer, "keras_reference", "cnn", folder, options, 20, turn + 1)
            for name, run in runs.items():
                say(f"same goal: {name}, turn {turn + 1} of {options.repeats}")
                measured.setdefault(name, []).append(run())
        results = [
            Measurement(
                f"to {accuracy:.2%} of the validation digits, from process start",
                "s",
                {name: [seconds_to(run, accuracy) for run in finished] for name, finished in measured.items()},
                "inf: not within its recipe",
            )
            for accuracy in (910 / 931, 925 / 931)  # the two results of the reference
        ]
        if options.data is not None and not options.smoke:
            results += _mnist(options, scratch, options.data / "data")
    return results


def _mnist(options: Options, scratch: Path, root: Path) -> list[Measurement]:
    results = []
    for accuracy, epochs in ((0.99, 1), (0.995, 3)):
        name = f"to {accuracy:.2%} of MNIST's test images, from process start"
        measurement = Measurement(name, "s", note=f"`configs/mnist.yaml` with --trainer.max_epochs {epochs}")
        for turn in range(options.repeats):
            say(f"{name}: turn {turn + 1}")
            args = ["--data.root", str(root), "--trainer.max_epochs", f"{epochs}", *_seed(turn, options)]
            finished = ours("mnist", options, scratch, *args, test=True)
            say(f"{[row['test_accuracy'] for row in finished.rows]}")
            measurement.values.setdefault("ours", []).append(seconds_to(finished, accuracy, "test_accuracy"))
        results.append(measurement)
    return results


def _seed(turn: int, options: Options) -> list[str]:
    args: list[Any] = ["--seed_everything", turn + 1]
    return [str(arg) for arg in [*args, *(["--trainer.max_epochs", 1] if options.smoke else [])]]
