"""A Lightning callback that writes down when each epoch ended and how accurate it was."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Clock(Callback):
    """Write a line an epoch: its number, its seconds, seconds since the process started, validation accuracy.

    Args:
        test: Also score the datamodule's test set after each epoch; the time for it doesn't count.
        until: End training once it is this accurate.
        seconds: Or when the process has run for so long, even within an epoch.
    """

    def __init__(self, test: bool = False, until: float = math.inf, seconds: float = math.inf) -> None:
        self.test = test
        self.until = until
        self.seconds = seconds
        self.excluded = 0.0
        self.started = 0.0
        self.test_accuracy = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self.started = time.time()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """End training within the epoch if time is up; what has been learnt is still scored."""
        trainer.should_stop |= self._now() >= self.seconds

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Score the test set, while averaged weights are in place: this callback must stand before theirs."""
        if not self.test or trainer.sanity_checking:
            return
        from lightning_modules.evaluation import evaluate

        start = time.time()
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.setup("test")
        self.test_accuracy = evaluate(pl_module, data.test_set).accuracy  # type: ignore[arg-type]
        self.excluded += time.time() - start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch's line."""
        if trainer.sanity_checking:
            return
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            "epoch_seconds": time.time() - self.started,
            "seconds": self._now(),
            "val_accuracy": float(trainer.callback_metrics["val_accuracy"]),
        }
        if self.test:
            row["test_accuracy"] = self.test_accuracy
        with Path(os.environ["BENCHMARK_EPOCHS"]).open("a") as file:
            file.write(json.dumps(row) + "\n")
        if row["test_accuracy" if self.test else "val_accuracy"] >= self.until:
            trainer.should_stop = True

    def _now(self) -> float:
        return time.time() - float(os.environ["BENCHMARK_START"]) - self.excluded
