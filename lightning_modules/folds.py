"""Cross-validation: a run for each fold, and what they say together."""

import statistics
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace

from datamodules.base import ImageDataModule
from datamodules.dataset import ImageDataset
from datamodules.figures import save_figure
from datamodules.text import as_table
from lightning_modules.checkpoint import load_classifier
from lightning_modules.commands.compare import plot_comparison
from lightning_modules.evaluation import Predictions, evaluate
from lightning_modules.plots import plot_confusion_matrix
from lightning_modules.run import Run
from lightning_modules.series import Series
from lightning_modules.summary import worst_class


class Folds(Series):
    """A run folder with a run for each fold, ``fold_1``, ``fold_2``, …, and ``folds.csv`` of those that are finished.

    Args:
        folder: The folder, which need not be there.
        count: How many folds there are.
    """

    def __init__(self, folder: Path, count: int) -> None:
        runs = {str(fold): Run(folder / f"fold_{fold}") for fold in range(1, count + 1)}
        super().__init__(folder, runs, folder / "folds.csv", "fold")

    def configure(self, config: Namespace, name: str) -> None:
        """Name the fold that is validated."""
        config.data.init_args.fold = int(name)

    def report(self, device: torch.device) -> str:
        """Draw ``folds.png`` and the confusion matrix of all images; returns a table of the result, for people."""
        accuracies = self.column("val_accuracy")
        mean = f"{statistics.mean(accuracies):.2%} ± {statistics.stdev(accuracies):.2%}"
        figure = plot_comparison(list(self.runs.values()))
        figure.axes[0].set_title(f"{len(accuracies)} folds: {mean} (dotted: training, augmented)")
        save_figure(figure, self.folder / "folds.png")
        found, class_names = self._predict(device)
        save_figure(plot_confusion_matrix(found, class_names), self.folder / "confusion_matrix.png")
        facts = {
            "validation accuracy": f"{mean} (mean ± standard deviation of {len(accuracies)} folds)",
            "all images": f"{found.accuracy:.2%} ({int(found.right.sum())} of {len(found.right)})",
            **worst_class({"val_accuracy": found.accuracy, **found.by_class(class_names)}),
            "training time": f"{sum(self.column('seconds')):.1f} s",
            "run folder": self.folder,
        }
        return f"{as_table([self.columns, *self.finished().values()])}\n\n{as_table(facts.items())}"

    def _predict(self, device: torch.device) -> tuple[Predictions, list[str]]:
        """What the network of each fold says of the images that it was validated on, and the names of the classes."""
        data = self.runs["1"].load_data()
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
