"""The result of a run: what ``summary.json`` holds, and a short table of it."""

import platform
from importlib.metadata import version
from typing import Any

from datamodules.text import as_table

FAR_BELOW = 0.1  # the overall accuracy: then the worst class is worth a word


def summarise(epochs: list[dict[str, float]], best_epoch: int, right: int, count: int) -> dict[str, Any]:
    """The result of a run in figures, and the history of its epochs.

    ``stop_epoch`` is where training could have stopped: the first epoch whose validation accuracy is within one
    standard error of the best (the one-standard-error rule of Breiman et al. 1984, Classification and Regression
    Trees); what came after it can't be told from chance on this validation set.

    Args:
        epochs: For each epoch its number, from 1, and its metrics.
        best_epoch: Of the best checkpoint.
        right: Validation images that it has right.
        count: Validation images.
    """
    accuracy = right / count
    standard_error = (accuracy * (1 - accuracy) / count) ** 0.5
    enough = [int(row["epoch"]) for row in epochs if row["val_accuracy"] >= accuracy - standard_error]
    return {
        "val_accuracy": accuracy,
        "best_epoch": best_epoch,
        "stop_epoch": min([best_epoch, *enough]),
        "epochs": int(epochs[-1]["epoch"]),
        "val_images": count,
        "val_mistakes": count - right,
        "history": epochs,
    }


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    packages = ("digitdoodle", "torch", "torchvision", "lightning", "timm", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except ModuleNotFoundError:  # run from a folder without being installed
            continue
    return found


def worst_class(summary: dict[str, Any]) -> dict[str, str]:
    """A row of the table on the class that is found worst; none where it is hardly worse than the rest, or unknown."""
    counts = {name: count for name, count in summary.get("val_images_per_class", {}).items() if count}
    if not counts:
        return {}
    found = summary["val_accuracy_per_class"]
    worst = min(counts, key=lambda name: found[name])
    if found[worst] >= summary["val_accuracy"] - FAR_BELOW:
        return {}
    right = round(found[worst] * counts[worst])
    return {"worst class": f"{found[worst]:.2%} ({right} of {counts[worst]}) of {worst}"}


def describe(summary: dict[str, Any]) -> str:
    """A short table of a run's result, for people."""
    right = summary["val_images"] - summary["val_mistakes"]
    rows = {
        "validation accuracy": f"{summary['val_accuracy']:.2%} ({right} of {summary['val_images']})",
        **worst_class(summary),
        "best epoch": f"{summary['best_epoch']} of {summary['epochs']}",
        "could stop after": f"epoch {summary['stop_epoch']} (within one standard error of the best)",
        "training time": f"{summary['seconds']:.1f} s",
        "parameters": f"{summary['parameters']:,}",
        "checkpoint": summary["checkpoint"],
        "run folder": summary["run"],
    }
    return as_table(rows.items())
