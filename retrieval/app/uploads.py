"""Where Gradio keeps uploads; it reads that when it is imported."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator

PLACE = "GRADIO_TEMP_DIR"  # environment variable that Gradio reads; without it, all users share a folder


@contextlib.contextmanager
def private_uploads() -> Iterator[None]:
    """Keep uploads in a folder for this process and user alone, unless another one is named, and remove it at the end.

    SIGTERM is then an end as Ctrl-C is: without it the folder would stay.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
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
    finally:
        signal.signal(signal.SIGTERM, before)
