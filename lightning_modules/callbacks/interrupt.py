"""Let Ctrl-C and SIGTERM end a run between two batches."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from datamodules.errors import Terminated


class InterruptBetweenBatches(Callback):
    """Ctrl-C ends training after the batch at hand; pressed again, it ends it at once.

    Python raises ``KeyboardInterrupt`` between any two instructions, also in the middle of a queue or a file that is
    needed once more to end the run: a logger that is closed then may wait forever.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._taken = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take note of Ctrl-C from here on, unless it is ignored, as in a shell's background job."""
        if _in_main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
            self._pressed, self._taken = False, True

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

    def on_predict_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """End prediction if the process was terminated, of which Lightning takes note in all loops but this one."""
        if trainer.received_sigterm:
            raise SIGTERMException

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave Ctrl-C as it was; if it was pressed after the last batch, end what the run is a part of."""
        self._leave()
        if self._pressed:
            raise KeyboardInterrupt

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave Ctrl-C as it was."""
        self._leave()

    def _leave(self) -> None:
        if self._taken:
            self._taken = False
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Leave Ctrl-C as it was, which Lightning ignores once it has been pressed; name the end by SIGTERM.

    Raises:
        Terminated: The process was asked to end; Lightning's own exception would end it with status 0.
    """
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SIGTERMException as error:
        raise Terminated from error
    finally:
        if _in_main_thread():
            signal.signal(signal.SIGINT, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()  # others can't set signals
