"""Compare runs: ``python -m lightning_modules.compare RUN [RUN ...]``."""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from datamodules.commands import add_import_option, run_command
from datamodules.figures import check_figure, save_figure
from datamodules.text import as_table, printable, short_name
from datamodules.writing import check_output, write_csv
from lightning_modules.checkpoint import load_classifier
from lightning_modules.classifier import Classifier
from lightning_modules.plots import frame_accuracies
from lightning_modules.run import Run

COLUMNS = (
    "run",
    "model",
    "val_accuracy",
    "best_epoch",
    "parameters",
    "checkpoint_mb",
    "seconds",
    "images_per_second",
)


def different_splits(runs: list[Run]) -> str | None:
    """A sentence that says which runs were validated on other images than the first; None if none was."""
    others = [run.name for run in runs[1:] if run.validated != runs[0].validated]
    if not others:
        return None
    return (
        f"{', '.join(others)} and {runs[0].name} were validated on different images: "
        "their accuracies don't compare; train on one split with --data.split_file"
    )


def images_per_second(models: list[Classifier], batch_size: int = 64, repeats: int = 5) -> list[float]:
    """Inference rate of each model on this machine, on batches of random pixels of its own size.

    The models take turns, so that a machine that speeds up or slows down does so for all; the median counts.
    """
    batches = [
        torch.randint(0, 256, (batch_size, m.in_channels, m.image_size, m.image_size), dtype=torch.uint8).to(m.device)
        for m in models
    ]
    seconds: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for turn in tqdm(range(repeats + 1), desc="Measuring", leave=False):
            for model, batch, measured in zip(models, batches, seconds, strict=True):
                start = time.perf_counter()
                model(batch).cpu()
                if turn > 0:  # the first is a warm-up
                    measured.append(time.perf_counter() - start)
    return [batch_size / statistics.median(measured) for measured in seconds]


def compare(runs: list[Run]) -> list[dict[str, Any]]:
    """One row a run, with the columns ``COLUMNS``; inference is measured now."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rates = images_per_second([load_classifier(run.best, device) for run in runs])
    return [
        {
            "run": run.name,
            "model": run.summary["model"],
            "val_accuracy": round(run.summary["val_accuracy"], 6),
            "best_epoch": run.summary["best_epoch"],
            "parameters": run.summary["parameters"],
            "checkpoint_mb": round(run.best.stat().st_size / 1e6, 2),
            "seconds": run.summary["seconds"],
            "images_per_second": round(rate, 1),
        }
        for run, rate in zip(runs, rates, strict=True)
    ]


def plot_comparison(runs: list[Run], note: str | None = None) -> Figure:
    """Validation accuracy (solid) and training accuracy (thin) per epoch of all runs, over each other."""
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    shown = []
    for run in runs:
        history = run.summary["history"]
        epochs = [row["epoch"] for row in history]
        accuracies = [100 * row["val_accuracy"] for row in history]
        label = f"{run.summary['val_accuracy']:.2%} {short_name(run.name, 40)}"
        (line,) = axes.plot(epochs, accuracies, "o-", ms=3, label=label)
        axes.plot(epochs, [100 * row["train_accuracy"] for row in history], lw=0.8, ls=":", color=line.get_color())
        shown.append(accuracies)
    frame_accuracies(axes, shown)
    axes.set_title("Validation accuracy (dotted: training, augmented)")
    if note:
        figure.supxlabel(note, fontsize=8, color="firebrick", wrap=True, parse_math=False)
    return figure


def main(args: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m lightning_modules.compare", description="Compare runs.")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run folder, such as runs/custom_cnn/version_0"
    )
    parser.add_argument("--output", type=Path, default=Path("comparison.csv"), help="the table as CSV (%(default)s)")
    parser.add_argument("--figure", type=Path, default=Path("comparison.png"), help="the curves (%(default)s)")
    add_import_option(parser)

    def command(options: argparse.Namespace) -> None:
        check_output(options.output)
        check_figure(options.figure)
        runs = [Run(folder) for folder in options.runs]
        for run in runs:
            _ = run.summary  # or it is said now what is wrong with it
        note = different_splits(runs)
        table = [COLUMNS, *([str(cell) for cell in row.values()] for row in compare(runs))]
        print(as_table(table))
        if note:
            print(f"note: {printable(note)}")
        write_csv(options.output, table)
        save_figure(plot_comparison(runs, note), options.figure)

    return run_command(parser, command, args)
