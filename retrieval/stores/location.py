"""Where an index is kept: in a file, or in a collection of Milvus."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from datamodules.errors import UserError, reason
from retrieval.stores.base import Store
from retrieval.stores.sqlite import SQLiteStore

INDEX_NAME = ".digitdoodle.sqlite"  # hidden, so that it is never taken for an image

Location = Path | str  # a file, or the http(s) address of a collection


class ReadOnlyError(UserError):
    """The index can't be written where it is."""


def find_location(folder: Path, index: str | Path | None) -> Location:
    """Where a folder's index is kept: in the folder unless another file or an address is named."""
    if index is None:
        return folder / INDEX_NAME
    return str(index) if str(index).startswith(("http://", "https://")) else Path(index)


def open_store(location: Location, header: Mapping[str, str] | None = None, dimension: int = 0) -> Store:
    """Open an index.

    Args:
        location: Where it is.
        header: Makes a new index with this header if there is none.
        dimension: D, the length of the vectors of a new index.

    Raises:
        MissingIndexError: There is none.
        UserError: It can't be reached, read or written.
    """
    if isinstance(location, Path):
        return SQLiteStore(location, header)
    try:
        from retrieval.stores.milvus import MilvusStore, parse_address
    except ModuleNotFoundError as error:
        raise UserError(f"an index on Milvus needs {error.name}: pip install 'digitdoodle[milvus]'") from error
    uri, collection, exact_up_to = parse_address(location)
    return MilvusStore(uri, collection, header, dimension, exact_up_to)


@contextlib.contextmanager
def write_lock(location: Location, wait: bool) -> Iterator[None]:
    """Wait until no other process updates the same file; the lock ends with the process that holds it.

    Milvus takes the updates of many processes at once.

    Raises:
        Timeout: Another process is updating it, and ``wait`` is false.
        ReadOnlyError: The folder or the file can't be written to.
    """
    if not isinstance(location, Path):
        yield
        return
    lock = FileLock(f"{location}.lock", timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        raise
    except OSError as error:
        raise ReadOnlyError(
            f"{location}: can't be written there ({reason(error)}): name a file in another folder with --index"
        ) from error
    try:
        if location.exists() and not os.access(location, os.W_OK):
            raise ReadOnlyError(f"{location}: can't be written there: name a file in another folder with --index")
        yield
    finally:
        lock.release()
