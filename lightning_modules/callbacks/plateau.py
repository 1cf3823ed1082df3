"""A schedule that waits for a metric, when a run is resumed."""

from collections.abc import Iterator
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import LRSchedulerConfig


class PlateauSchedules(Callback):
    """Lets a resumed run know the last epoch's metric by which ``ReduceLROnPlateau`` lowers the learning rate.

    Lightning (2.6) takes that step after it has written the epoch's checkpoint, and leaves it out when it resumes.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """What the schedules wait for, after the epoch at hand."""
        return dict(self._metrics)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up."""
        self._metrics = dict(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the step that the run which is resumed had still to take."""
        for config in _waiting(trainer):
            if config.monitor in self._metrics and trainer.current_epoch % config.frequency == 0:
                pl_module.lr_scheduler_step(config.scheduler, self._metrics[config.monitor])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget it: a checkpoint from within an epoch has taken the step."""
        self._metrics = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the metrics, before the checkpoint is written."""
        logged = trainer.callback_metrics
        monitored = [config.monitor for config in _waiting(trainer) if config.monitor in logged]
        self._metrics = {name: logged[name].item() for name in monitored if name is not None}


def _waiting(trainer: Trainer) -> Iterator[LRSchedulerConfig]:
    return (
        config for config in trainer.lr_scheduler_configs if config.reduce_on_plateau and config.interval == "epoch"
    )
