"""Where an index is kept: in a file, or in a collection of Milvus."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from datamodules.errors import UserError, reason
from retrieval.stores.base import Store
from retrieval.stores.sqlite import SQLiteStore, lock_of

INDEX_NAME = ".digitdoodle.sqlite"  # hidden, so that it is never taken for an image


class ReadOnlyError(UserError):
    """There is an index, but it can't be written where it is."""


class Location(ABC):
    """Where an index is kept: opens its store, and locks it. ``str`` gives what the user calls it.

    Attributes:
        shared: Whether many processes and machines fill the same index at once; otherwise one process writes, and
            whoever asks brings the index up to date before.
    """

    shared: bool

    @abstractmethod
    def open(self, header: Mapping[str, str] | None = None, dimension: int = 0) -> Store:
        """Open the index.

        Args:
            header: Creates an index with this header if there is none.
            dimension: D, the length of the vectors of a new index.

        Raises:
            MissingIndexError: There is none.
            UserError: It can't be reached, read or written.
        """

    @abstractmethod
    def write_lock(self, wait: bool) -> AbstractContextManager[None]:
        """Wait until no other process updates the index; the lock ends with the process that holds it.

        Raises:
            Timeout: Another process is updating it, and ``wait`` is false.
            UserError: It can't be written; a ``ReadOnlyError`` if it is there.
        """


@dataclass(frozen=True)
class FileLocation(Location):
    """A SQLite file.

    Args:
        path: Where it is, or will be.
    """

    path: Path
    shared = False

    def open(self, header: Mapping[str, str] | None = None, dimension: int = 0) -> Store:
        return SQLiteStore(self.path, header)

    @contextlib.contextmanager
    def write_lock(self, wait: bool) -> Iterator[None]:
        lock = FileLock(lock_of(self.path), timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            raise
        except OSError as error:
            raise self._not_writable(f" ({reason(error)})") from error
        try:
            if self.path.exists() and not os.access(self.path, os.W_OK):
                raise self._not_writable()
            yield
        finally:
            lock.release()

    def _not_writable(self, why: str = "") -> UserError:
        kind = ReadOnlyError if self.path.exists() else UserError
        return kind(f"{self}: can't be written there{why}: name a file in another folder with --index")

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class ServerLocation(Location):
    """A collection on a Milvus server, which takes the updates of many processes at once.

    Args:
        address: ``http://HOST:PORT/COLLECTION``.
    """

    address: str
    shared = True

    def open(self, header: Mapping[str, str] | None = None, dimension: int = 0) -> Store:
        try:
            from retrieval.stores.milvus import MilvusStore, parse_address
        except ModuleNotFoundError as error:
            raise UserError(f'an index on Milvus needs {error.name}: pip install ".[milvus]" in the clone') from error
        uri, collection, exact_up_to = parse_address(self.address)
        return MilvusStore(uri, collection, header, dimension, exact_up_to)

    def write_lock(self, wait: bool) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def __str__(self) -> str:
        return self.address


def parse_location(index: str | Path) -> Location:
    """The location that a user has named: the http(s) address of a collection, or a file."""
    text = str(index)
    return ServerLocation(text) if text.startswith(("http://", "https://")) else FileLocation(Path(index))


def find_location(folder: Path, index: str | Path | None) -> Location:
    """Where a folder's index is kept: in the folder unless another place is named."""
    return parse_location(folder / INDEX_NAME if index is None else index)


def no_index(folder: Path, location: Location) -> UserError:
    """What to raise for a folder without an index in a place."""
    where, option = ("", "") if location == find_location(folder, None) else (f" in {location}", f" --index {location}")
    return UserError(f"{folder} has no index{where} yet; create it with `python -m retrieval index {folder}{option}`")
