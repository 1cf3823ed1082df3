"""Ends a trial of a sweep that is worse than others were."""

import optuna
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Pruning(Callback):
    """Reports a metric to Optuna after each validation, and ends the trial where Optuna's pruner says so.

    Args:
        trial: The trial.
        monitor: The metric.
    """

    def __init__(self, trial: optuna.Trial, monitor: str) -> None:
        self.trial = trial
        self.monitor = monitor

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the epoch's metric.

        Raises:
            TrialPruned: The trial isn't worth going on with.
        """
        value = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or value is None or not value.isfinite():  # the network itself says that it diverged
            return
        self.trial.report(value.item(), step=trainer.current_epoch)
        if self.trial.should_prune():
            raise optuna.TrialPruned
