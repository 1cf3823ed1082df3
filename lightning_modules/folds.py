"""Cross-validation: a run for each fold, and what they say together."""

import csv
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.base import ImageDataModule
from datamodules.dataset import ImageDataset
from datamodules.errors import UserError, reason
from datamodules.figures import save_figure
from datamodules.text import as_table
from datamodules.writing import write_csv
from lightning_modules.checkpoint import load_classifier
from lightning_modules.commands.compare import plot_comparison
from lightning_modules.evaluation import Predictions, evaluate
from lightning_modules.plots import plot_confusion_matrix
from lightning_modules.run import Run
from lightning_modules.summary import worst_class

COLUMNS = ("fold", "val_accuracy", "val_images", "val_mistakes", "best_epoch", "epochs", "seconds")


class Folds:
    """A run folder with a run for each fold, ``fold_1``, ``fold_2``, …, and ``folds.csv`` of those that are finished.

    Args:
        folder: The folder, which need not be there.
        count: How many folds there are.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.config = Run(folder).config
        self.table = folder / "folds.csv"
        self.runs = {fold: Run(folder / f"fold_{fold}") for fold in range(1, count + 1)}

    def finished(self) -> dict[int, list[str]]:
        """By fold, what the table has in ``COLUMNS``.

        Raises:
            UserError: The table is damaged.
        """
        try:
            with self.table.open(newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
            if tuple(header) != COLUMNS:
                raise ValueError(f"its columns are not {', '.join(COLUMNS)}")
            return {int(row[0]): row for row in rows}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UserError(f"{self.table}: {reason(error)}") from error
        except ValueError as error:
            raise UserError(f"{self.table}: damaged ({error}); remove it to finish the folds again") from error

    def left(self) -> list[int]:
        """The folds that are not finished."""
        return [fold for fold in self.runs if fold not in self.finished()]

    def finish(self, fold: int, summary: dict[str, Any]) -> None:
        """Note that a fold is finished, with the result of its run."""
        row = [fold, round(summary["val_accuracy"], 6), *(summary[column] for column in COLUMNS[2:])]
        write_csv(self.table, [COLUMNS, *self.finished().values(), row])

    def discard(self) -> None:
        """Remove the folder, unless a fold has a checkpoint."""
        if not any(run.checkpoints.exists() for run in self.runs.values()):
            Run(self.folder).discard()

    def report(self, device: torch.device) -> str:
        """Draw ``folds.png`` and the confusion matrix of all images; returns a table of the result, for people.

        Args:
            device: Where the networks predict.

        Raises:
            UserError: A run is not what it was when its fold was finished, or the images aren't.
        """
        rows = list(self.finished().values())
        accuracies = [float(row[COLUMNS.index("val_accuracy")]) for row in rows]
        mean = f"{statistics.mean(accuracies):.2%} ± {statistics.stdev(accuracies):.2%}"
        figure = plot_comparison(list(self.runs.values()))
        figure.axes[0].set_title(f"{len(rows)} folds: {mean} (dotted: training, augmented)")
        save_figure(figure, self.folder / "folds.png")
        found, class_names = self._predict(device)
        save_figure(plot_confusion_matrix(found, class_names), self.folder / "confusion_matrix.png")
        facts = {
            "validation accuracy": f"{mean} (mean ± standard deviation of {len(rows)} folds)",
            "all images": f"{found.accuracy:.2%} ({int(found.right.sum())} of {len(found.right)})",
            **worst_class({"val_accuracy": found.accuracy, **found.by_class(class_names)}),
            "training time": f"{sum(float(row[COLUMNS.index('seconds')]) for row in rows):.1f} s",
            "run folder": self.folder,
        }
        return f"{as_table([COLUMNS, *rows])}\n\n{as_table(facts.items())}"

    def _predict(self, device: torch.device) -> tuple[Predictions, list[str]]:
        """What the network of each fold says of the images that it was validated on, and the names of the classes."""
        data = self.runs[1].load_data()
        assert isinstance(data, ImageDataModule)
        assert data.train_set is not None
        collection = data.train_set.collection
        parts = []
        for run in self.runs.values():
            validated = {name for name, _ in run.validated}
            rows = np.array([row for row, name in enumerate(collection.names) if name in validated])
            parts.append(evaluate(load_classifier(run.best, device), ImageDataset(collection, rows)))
        pooled = (torch.cat([getattr(part, name) for part in parts]) for name in ("probabilities", "labels", "logits"))
        return Predictions(*pooled), data.class_names
