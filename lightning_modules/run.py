"""The folder that a run leaves behind."""

import contextlib
import csv
import itertools
import json
import shutil
import sys
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from datamodules.augmentation import Augmentation, BaseAugmentation
from datamodules.base import BaseDataModule, ImageDataModule
from datamodules.errors import UserError, reason
from datamodules.splits import VAL, read_rows
from lightning_modules.checkpoint import known_class, read_checkpoint

# Arguments of a datamodule that may be relative paths.
FOLDERS = ("root", "val_root", "test_root", "cache_dir", "strings", "test_strings")


class Run:
    """A run folder, ``runs/NAME/version_N`` or a part of one: where everything is in it.

    Args:
        folder: The folder, which need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.split = folder / "split.csv"
        self.summary_file = folder / "summary.json"
        self.metrics = folder / "metrics.csv"
        self.checkpoints = folder / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"

    @classmethod
    def create(cls, root: Path, name: str, make: bool = True) -> Self:
        """The first ``root/name/version_N`` that isn't there yet.

        Args:
            root: The folder of all runs.
            name: The folder of the runs of this name.
            make: Make the folder; otherwise this process only needs one to name.

        Raises:
            UserError: The folder can't be made.
        """
        for number in itertools.count():
            run = cls(root / name / f"version_{number}")
            try:
                if make:
                    run.folder.mkdir(parents=True)
                return run
            except FileExistsError:
                continue
            except OSError as error:
                raise UserError(
                    f"{run.folder}: {reason(error)}; name a folder for runs with --trainer.default_root_dir"
                ) from error
        raise AssertionError  # the loop has no end

    @classmethod
    def of_checkpoint(cls, path: Path) -> Self:
        """The run that a checkpoint lies in, if it lies in one."""
        return cls(path.absolute().parent.parent)

    def last_checkpoint(self) -> str | None:
        """What a run that was interrupted goes on from; None where it has none that is whole."""
        try:
            read_checkpoint(self.last)
        except UserError:
            return None
        return str(self.last)

    def start_again(self) -> None:
        """Make an empty folder for a run, which may have been killed before its first checkpoint was written."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def discard(self) -> None:
        """Remove the folder, unless there is a checkpoint in it, and those above it that are empty then."""
        if not self.checkpoints.exists():
            shutil.rmtree(self.folder)
            self.remove_empty()

    def remove_empty(self) -> None:
        """Remove the folder and the two above it, as far as they are empty."""
        for folder in (self.folder, *self.folder.parents[:2]):
            with contextlib.suppress(OSError):  # other runs are in it
                folder.rmdir()

    def loggers(self) -> list[Logger]:
        """Those that write the metrics into the folder: as CSV, and for TensorBoard.

        In a run that goes on from its last checkpoint, those up to there stay.
        """
        # TensorBoard's own switch: or else it imports TensorFlow where that is installed, which takes seconds.
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
        kind, _, number = self.folder.name.rpartition("_")
        where: dict[str, Any] = {
            "save_dir": str(self.folder.parent.parent),
            "name": self.folder.parent.name,
            "version": int(number) if kind == "version" else self.folder.name,
        }
        earlier, logger = self._metrics_until_last(), CSVLogger(**where)
        if earlier:
            logger.experiment.metrics = earlier  # its file is removed by now
            logger.save()
        return [logger, TensorBoardLogger(**where)]

    def _metrics_until_last(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.csv`` up to the last checkpoint; none where either isn't there, or is damaged."""
        try:
            text = self.metrics.read_text(encoding="utf-8", errors="replace").replace("\0", "")
            steps = read_checkpoint(self.last)["global_step"]
        except (OSError, UserError):
            return []
        whole = [row for row in csv.DictReader(text.splitlines()) if (row.get("step") or "").isdigit()]  # not cut off
        return [row for row in whole if int(row["step"]) < steps]

    @property
    def name(self) -> str:
        """``custom_cnn/version_0``."""
        return "/".join(self.folder.resolve().parts[-2:])

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The result, as ``summary.json`` has it.

        Raises:
            UserError: It is not a run folder, or its training hasn't ended, or the file is damaged.
        """
        for needed in (self.summary_file, self.split, self.best):
            if not needed.is_file():
                raise UserError(f"{self.folder}: not a finished run ({needed.relative_to(self.folder)} is missing)")
        try:
            summary: dict[str, Any] = json.loads(self.summary_file.read_text(encoding="utf-8"))
            summary["history"], summary["val_accuracy"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.summary_file}: damaged ({error})") from error
        return summary

    @property
    def validated(self) -> frozenset[tuple[str, str]]:
        """The validation images, with their labels."""
        return frozenset((name, label) for name, (label, subset) in read_rows(self.split).items() if subset == VAL)

    def load_data(self, root: Path | None = None) -> BaseDataModule:
        """The data that the run was trained on, with its split.

        Args:
            root: Where the images are now; None looks where they were: a relative folder below the current one, else
                below the one that the run was started in.

        Raises:
            UserError: They aren't there, or aren't what they were.
        """
        checkpoint = read_checkpoint(self.best)
        if "data_hparams" not in checkpoint:
            raise UserError(f"{self.best}: doesn't say what it was trained on, or not in plain values")
        hparams = dict(checkpoint["data_hparams"])
        if root is not None:
            if "root" not in hparams:
                raise UserError(f"--data.root {root}: {checkpoint['data_class']} has no root; leave the option out")
            hparams["root"] = str(root)
        data = self._build_data(checkpoint["data_class"], hparams)
        if isinstance(data, ImageDataModule):
            data.split_file = str(self.split)
        data.prepare_data()
        data.setup("fit")
        return data

    def _build_data(self, name: str, hparams: dict[str, Any]) -> BaseDataModule:
        for folder in FOLDERS:
            if hparams.get(folder) is not None and not Path(hparams[folder]).exists():
                there = self._started_in() / hparams[folder]
                hparams[folder] = str(there) if there.exists() else hparams[folder]
        if hparams.get("augmentation") is not None:
            hparams["augmentation"] = self._build_augmentation(hparams["augmentation"])
        for part in ("digits", "replay"):
            if hparams.get(part) is not None:
                hparams[part] = self._build_data(hparams[part]["class_path"], dict(hparams[part]["init_args"]))
        return known_class(BaseDataModule, name, self.best)(**hparams)

    def _build_augmentation(self, described: dict[str, Any]) -> BaseAugmentation:
        if "class_path" not in described:  # as it was when there was one augmentation
            return Augmentation(**described)
        base: Any = BaseAugmentation
        augmentation: BaseAugmentation = known_class(base, described["class_path"], self.best)(**described["init_args"])
        return augmentation

    def _started_in(self) -> Path:
        """The folder that the run was started in, as far as the summary's relative path of the run folder tells."""
        noted = Path(self.summary.get("run", self.folder.absolute()))
        folder = self.folder.resolve()
        known = not noted.is_absolute() and folder.parts[-len(noted.parts) :] == noted.parts
        return folder.parents[len(noted.parts) - 1] if known else Path()
