"""Write files so that they are whole or not there."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def written_aside(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a file beside the path, which takes its place when the block ends well and is removed otherwise.

    Args:
        path: Where the file shall stand; what stands there meanwhile stays as it is.
        mode: As for ``open``.
        options: As for ``open``.

    Raises:
        OSError: It can't be written: no permission, no room.
    """
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with aside.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
