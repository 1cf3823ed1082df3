"""What a run leaves behind: its split, its pictures and its summary."""

import json
import time
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.base import BaseDataModule, ImageDataModule
from datamodules.errors import UserError
from datamodules.figures import save_figure
from datamodules.strings import StringsDataModule
from datamodules.writing import atomic_write
from lightning_modules.assessment import assess
from lightning_modules.callbacks.checkpoints import BestCheckpoint
from lightning_modules.checkpoint import load_network, read_checkpoint, save_calibration
from lightning_modules.network import DivergedError, Network
from lightning_modules.plots import plot_accuracy, plot_augmentation, plot_classes, plot_lines
from lightning_modules.run import Run
from lightning_modules.summary import summarise, versions

METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


class RunReport(Callback):
    """Writes into the run folder what people look at first.

    When training starts: ``split.csv``, ``augmentation.png`` and ``classes.png``. When it ends, also by Ctrl-C:
    ``accuracy.png``, and of the best checkpoint, which is calibrated then, ``confusion_matrix.png``, ``mistakes.png``
    and ``summary.json``.

    Args:
        run: Where it writes.

    Attributes:
        summary: What ``summary.json`` holds; None until training has ended. Epochs count from 1.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.summary: dict[str, Any] | None = None
        self._epochs: list[dict[str, float]] = []
        self._validated = False
        self._seconds = 0.0
        self._started = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The epochs so far, so that a resumed run reports all of them."""
        return {"epochs": self._epochs, "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the epochs of the run that is resumed."""
        self._epochs = list(state_dict["epochs"])
        self._seconds = state_dict["seconds"]

    def _elapsed(self) -> float:
        return self._seconds + (time.monotonic() - self._started if self._started else 0.0)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on the run folder, which the first process has made."""
        self.run = Run(Path(trainer.strategy.broadcast(str(self.run.folder))))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the split, a picture of augmented images and one of how many there are of each class."""
        data = _datamodule(trainer)
        if data is None or not trainer.is_global_zero:
            return
        self.run.folder.mkdir(parents=True, exist_ok=True)
        data.save_split(self.run.split)
        assert data.train_set is not None
        shown = data.train_set.batch(range(min(24, len(data.train_set))))
        augmented = data.augment(shown, epoch=0)
        if isinstance(data, StringsDataModule):
            figure = plot_lines(augmented, data.class_names)
        else:
            figure = plot_augmentation(shown.images, augmented.images)
        save_figure(figure, self.run.folder / "augmentation.png")
        if isinstance(data, ImageDataModule):
            assert data.val_set is not None
            train, val = (images.class_counts(len(data.class_names)) for images in (data.train_set, data.val_set))
            save_figure(plot_classes(train, val, data.class_names), self.run.folder / "classes.png")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that the epoch at hand is validated: Lightning's metrics stay those of the last one that was."""
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the epoch's metrics, if it was validated.

        Raises:
            UserError: Early stopping waits for a metric that there isn't.
        """
        if not self._validated:
            return
        self._validated = False
        logged = trainer.callback_metrics
        for stopping in trainer.early_stopping_callbacks:
            if stopping.monitor not in logged:
                raise UserError(f"early_stopping.monitor: no metric {stopping.monitor}; there are {', '.join(METRICS)}")
        if all(name in logged and logged[name].isfinite() for name in METRICS):
            metrics = {name: logged[name].item() for name in METRICS}
            self._epochs.append({"epoch": trainer.current_epoch + 1, **metrics, "seconds": self._elapsed()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write summary and pictures, while the network is on its device."""
        self._write(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write them also where nothing was left to train; say so where there is nothing to write of."""
        if self.summary is None:
            self._write(trainer, pl_module)
        if self.summary is None:
            rank_zero_info(
                "There is no best checkpoint, so there is no summary: nothing was validated, or none was kept."
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write summary and pictures of what there is when training is interrupted, or diverges."""
        ends = KeyboardInterrupt | SIGTERMException | DivergedError
        if self.summary is None and isinstance(exception, ends) and trainer.state.fn == TrainerFn.FITTING:
            self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, model: LightningModule) -> None:
        data: LightningDataModule | None = getattr(trainer, "datamodule", None)
        best = _best_checkpoint(trainer)
        if not (trainer.is_global_zero and self._epochs and best and data and isinstance(model, Network)):
            return
        seconds, self._started = self._elapsed(), 0.0
        # As whoever loads the checkpoint will score it, not in the precision that it was trained in.
        scored = load_network(best, Network, model.device)
        found = assess(scored, data)
        save_calibration(best, scored)
        best_epoch = read_checkpoint(best)["epoch"] + 1
        self.summary = summarise(self._epochs, best_epoch, found.right, found.count) | {
            **found.more,
            "seconds": round(seconds, 2),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "model": type(model).__name__,
            "data": type(data).__name__,
            "precision": trainer.precision,
            "device": trainer.strategy.root_device.type,
            "run": str(self.run.folder),
            "checkpoint": str(best),
            "versions": versions(),
        }
        # Before the pictures: none of them is worth the result.
        with atomic_write(self.run.summary_file, "w", encoding="utf-8") as file:
            file.write(json.dumps(self.summary, indent=2) + "\n")
        accuracy = plot_accuracy(self._epochs, self.summary["best_epoch"], self.summary["val_accuracy"])
        for name, figure in {"accuracy": accuracy, **found.figures}.items():
            save_figure(figure, self.run.folder / f"{name}.png")


def _datamodule(trainer: Trainer) -> BaseDataModule | None:
    datamodule = getattr(trainer, "datamodule", None)
    return datamodule if isinstance(datamodule, BaseDataModule) else None


def _best_checkpoint(trainer: Trainer) -> Path | None:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint) and callback.best_model_path:
            return Path(callback.best_model_path)
    return None
