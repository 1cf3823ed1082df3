"""Early stopping that goes on with the settings of the run at hand."""

from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch import callbacks
from lightning.pytorch.utilities import rank_zero_info


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, but for a resumed run, which has the patience that it was given, not that of the earlier run.

    Args:
        monitor: The metric.
        mode: Whether it should fall or rise; None follows from the metric: an accuracy should rise, all else fall.
        kwargs: As Lightning's has them.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"] | None = None, **kwargs: Any) -> None:
        super().__init__(monitor, mode=mode or ("max" if "accuracy" in monitor else "min"), **kwargs)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up how long the run has waited, and for what."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further where the run that is resumed had waited long enough, not even for an epoch."""
        if self.stopped_epoch and self.wait_count >= self.patience:
            trainer.should_stop = True
            rank_zero_info("The run had been stopped early; a larger --early_stopping.patience lets it go on.")
