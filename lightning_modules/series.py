"""A run that is made of several, which are trained one after the other."""

import csv
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

from datamodules.errors import UserError, reason
from datamodules.writing import write_csv
from lightning_modules.run import Run

RESULT = ("val_accuracy", "val_images", "val_mistakes", "best_epoch", "epochs", "seconds")


class Series(ABC):
    """A run folder with a run for each part of it, and a table of those that are finished.

    Args:
        folder: The folder, which need not be there.
        runs: By the name of the part, its run.
        table: The file of the table.
        part: What a part is called: the table's first column.
    """

    def __init__(self, folder: Path, runs: dict[str, Run], table: Path, part: str) -> None:
        self.folder = folder
        self.config = Run(folder).config
        self.runs = runs
        self.table = table
        self.columns = (part, *RESULT)

    @abstractmethod
    def configure(self, config: Namespace, name: str) -> None:
        """Make the settings of the whole those of a part."""

    @abstractmethod
    def report(self, device: torch.device) -> str:
        """Draw what the runs say together; returns a table of the result, for people.

        Args:
            device: Where the networks predict.

        Raises:
            UserError: A run is not what it was when it was finished, or the images aren't.
        """

    def finished(self) -> dict[str, list[str]]:
        """By part, what the table has of it.

        Raises:
            UserError: The table is damaged.
        """
        try:
            with self.table.open(newline="", encoding="utf-8") as file:
                header, *rows = csv.reader(file)
            if tuple(header) != self.columns:
                raise ValueError(f"its columns are not {', '.join(self.columns)}")
            return {row[0]: row for row in rows}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UserError(f"{self.table}: {reason(error)}") from error
        except (ValueError, IndexError) as error:
            what = f"{self.table}: damaged ({error}); remove it to finish the {self.columns[0]}s again"
            raise UserError(what) from error

    def left(self) -> list[str]:
        """The parts that are not finished."""
        finished = self.finished()
        return [name for name in self.runs if name not in finished]

    def finish(self, name: str, summary: dict[str, Any]) -> None:
        """Note that a part is finished, with the result of its run."""
        row = [name, round(summary["val_accuracy"], 6), *(summary[column] for column in RESULT[1:])]
        write_csv(self.table, [self.columns, *self.finished().values(), row])

    def discard(self) -> None:
        """Remove the folder, unless a part has a checkpoint."""
        if not any(run.checkpoints.exists() for run in self.runs.values()):
            Run(self.folder).discard()

    def column(self, name: str) -> list[float]:
        """A column of the table, of numbers."""
        return [float(row[self.columns.index(name)]) for row in self.finished().values()]


def asks_for_series(config: Any) -> str | None:
    """What in the config of ``fit`` asks for several runs: ``data.folds`` or ``teachers``; None for one run."""
    if isinstance(config.teachers, int):
        return "teachers"
    return "data.folds" if asks_for_folds(config) else None


def asks_for_folds(config: Any) -> bool:
    """Whether the config of ``fit`` asks for a run of each fold, not of one by name."""
    arguments = config.data.get("init_args") or {}
    return (arguments.get("folds") or 0) > 1 and arguments.get("fold", 0) is None
