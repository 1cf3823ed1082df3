"""Let Ctrl-C end training between two batches."""

import signal
import threading
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class InterruptBetweenBatches(Callback):
    """Ctrl-C ends training after the batch at hand; pressed again, it ends it at once.

    Python raises ``KeyboardInterrupt`` between any two instructions, also in the middle of a queue or a file that is
    needed once more to end the run: a logger that is closed then may wait forever.
    """

    def __init__(self) -> None:
        self._pressed = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note of Ctrl-C from here on, unless it is ignored, as in a shell's background job."""
        in_main_thread = threading.current_thread() is threading.main_thread()  # others can't set signals
        if in_main_thread and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)

    def _note(self, *signal_and_frame: Any) -> None:
        self._pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """End training if Ctrl-C was pressed."""
        if self._pressed:
            raise KeyboardInterrupt

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """End training if Ctrl-C was pressed."""
        if self._pressed:
            raise KeyboardInterrupt

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave Ctrl-C as it was."""
        if signal.getsignal(signal.SIGINT) == self._note:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave Ctrl-C as it was."""
        self.on_fit_end(trainer, pl_module)
