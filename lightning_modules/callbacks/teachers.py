"""Lets a classifier learn from others."""

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from datamodules.errors import UserError
from lightning_modules.checkpoint import load_classifier
from lightning_modules.classifier import Classifier


class Teachers(Callback):
    """Gives a classifier the teachers whose answers it learns from, beside the labels, when training starts.

    Args:
        paths: Checkpoints or exports of classifiers.
    """

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load them, onto the network's device.

        Raises:
            UserError: One can't be read, or tells other classes apart.
        """
        assert isinstance(pl_module, Classifier)
        pl_module.teachers = [load_classifier(Path(path), pl_module.device) for path in self.paths]
        for path, teacher in zip(self.paths, pl_module.teachers, strict=True):
            if teacher.class_names != pl_module.class_names:
                classes, taught = (", ".join(network.class_names) for network in (pl_module, teacher))
                raise UserError(f"{path}: tells {taught} apart, where its student has {classes}")
