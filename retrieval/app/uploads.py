"""Where Gradio keeps uploads; it reads that when it is imported."""

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from datamodules.errors import Terminated

PLACE = "GRADIO_TEMP_DIR"  # environment variable that Gradio reads; without it, all users share a folder


@contextlib.contextmanager
def private_uploads() -> Iterator[None]:
    """Keep uploads in a folder for this process and user alone, unless another one is named, and remove it at the end.

    SIGTERM ends the page as Ctrl-C does: without it the folder would stay.

    Raises:
        Terminated: SIGTERM came before the page was there.
    """
    asked = False

    def end(*_: Any) -> None:
        nonlocal asked
        asked = True
        raise KeyboardInterrupt  # which Gradio waits for

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if main else None
    try:
        if os.environ.get(PLACE):
            yield
            return
        with tempfile.TemporaryDirectory(prefix="digitdoodle-", ignore_cleanup_errors=True) as folder:
            os.environ[PLACE] = folder
            try:
                yield
            finally:
                del os.environ[PLACE]
    except KeyboardInterrupt:
        if asked:
            raise Terminated from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
