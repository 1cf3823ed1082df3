"""Write files so that they are whole or not there."""

import contextlib
import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from datamodules.errors import UserError


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a file beside the path, which takes its place when the block ends well and is removed otherwise.

    What a link points to is replaced, not the link. A device or a pipe can't be replaced and is written to.

    Args:
        path: Where the file shall stand; what stands there meanwhile stays as it is.
        mode: As for ``open``.
        options: As for ``open``.

    Raises:
        OSError: It can't be written: no permission, no room.
    """
    if path.exists() and not path.is_file():
        with path.open(mode, **options) as file:
            yield file
        return
    place = path.resolve()
    aside = place.with_name(f".{place.name}.{os.urandom(4).hex()}.tmp")
    try:
        with aside.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(place)
    except OSError as error:
        if error.filename != str(aside):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows
    finally:
        with contextlib.suppress(OSError):  # it has taken its place, or was never made
            aside.unlink()


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> None:
    """Write rows of cells, the header first, as CSV in UTF-8; file names that are not UTF-8 keep their bytes.

    Raises:
        OSError: As ``atomic_write``.
    """
    with atomic_write(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def check_output(path: Path) -> None:
    """Refuse a place where no file can stand, before anything is computed for it.

    Raises:
        UserError: Its folder isn't there, or it is a folder.
    """
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such folder")
    if path.is_dir():
        raise UserError(f"{path}: a folder; name a file in it")
