"""Distillation of an ensemble: a run for each teacher, then one of the student that learns from them."""

from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from datamodules.base import ImageDataModule
from datamodules.errors import UserError
from datamodules.figures import save_figure
from datamodules.text import as_table
from lightning_modules.checkpoint import known_class, load_classifier
from lightning_modules.classifier import Classifier
from lightning_modules.commands.compare import plot_comparison
from lightning_modules.evaluation import Predictions, evaluate
from lightning_modules.network import Network
from lightning_modules.run import Run
from lightning_modules.series import Series, asks_for_folds

STUDENT = "student"


class Distillation(Series):
    """A run folder with ``teacher_1``, ``teacher_2``, … and ``student``, and ``distillation.csv`` of those finished.

    Args:
        folder: The folder, which need not be there.
        count: How many teachers there are.
        seed: Of the student; teachers have the next ones. False seeds none.
    """

    def __init__(self, folder: Path, count: int, seed: int | bool) -> None:
        self.teachers = [f"teacher_{number}" for number in range(1, count + 1)]
        self.seed = seed
        runs = {name: Run(folder / name) for name in (*self.teachers, STUDENT)}
        super().__init__(folder, runs, folder / "distillation.csv", "run")

    def configure(self, config: Namespace, name: str) -> None:
        """Give each run a seed of its own, and the student its teachers."""
        learns = name == STUDENT
        config.teachers = [str(self.runs[teacher].best) for teacher in self.teachers] if learns else None
        if self.seed is not False:
            config.seed_everything = self.seed if learns else self.seed + 1 + self.teachers.index(name)

    def report(self, device: torch.device) -> str:
        """Draw ``distillation.png``; returns a table of the runs, the ensemble of the teachers and the student."""
        student = self.runs[STUDENT]
        ensemble = self._ensemble(device)
        figure = plot_comparison(list(self.runs.values()))
        figure.axes[0].axhline(100 * ensemble.accuracy, color="gray", ls="--", lw=1)
        figure.axes[0].set_title(
            f"Student {student.summary['val_accuracy']:.2%}, ensemble of its teachers {ensemble.accuracy:.2%} (dashed; "
            "dotted: training, augmented)"
        )
        save_figure(figure, self.folder / "distillation.png")
        count = len(ensemble.right)
        facts = {
            "ensemble": f"{ensemble.accuracy:.2%} ({int(ensemble.right.sum())} of {count}), the teachers' mean",
            "student": f"{student.summary['val_accuracy']:.2%} ({count - student.summary['val_mistakes']} of {count})",
            "training time": f"{sum(self.column('seconds')):.1f} s",
            "checkpoint": student.best,
            "run folder": self.folder,
        }
        return f"{as_table([self.columns, *self.finished().values()])}\n\n{as_table(facts.items())}"

    def _ensemble(self, device: torch.device) -> Predictions:
        """What the teachers say of the validation images, on average."""
        data = self.runs[STUDENT].load_data()
        assert isinstance(data, ImageDataModule)
        assert data.val_set is not None
        teachers = [load_classifier(self.runs[name].best, device) for name in self.teachers]
        return average([evaluate(teacher, data.val_set) for teacher in teachers])


def average(found: list[Predictions]) -> Predictions:
    """What an ensemble says: the mean of its members' probabilities."""
    probabilities = torch.stack([each.probabilities for each in found]).mean(dim=0)
    return Predictions(probabilities, found[0].labels, probabilities.log())


def check_teachers(config: Any) -> None:
    """Refuse teachers that can't be.

    Raises:
        UserError: The network is no classifier, there are none, or folds would each need their own.
    """
    if config.teachers is None:
        return
    network = known_class(Network, config.model.class_path, Path("--model"))
    if not issubclass(network, Classifier):
        raise UserError(f"--teachers: a {network.__name__} can't learn from others, only a classifier can")
    if isinstance(config.teachers, int) and config.teachers < 1:
        raise UserError(f"--teachers: how many must be at least 1, got {config.teachers}")
    if asks_for_folds(config):
        raise UserError("--teachers: data.folds are trained without; or name one of them, --data.fold 1")
