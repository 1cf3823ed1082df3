"""A folder that can be searched: files, encoder and store, tied together."""

import contextlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from datamodules.errors import UserError, reason
from datamodules.images import EXTENSIONS, ImageError, decode_image, find_images, read_bytes
from datamodules.splits import digest
from retrieval.encoder import Encoder, Pixels
from retrieval.search import Vectors
from retrieval.sqlite_store import SQLiteStore
from retrieval.store import Record, Store

INDEX_NAME = ".digitdoodle.sqlite"  # hidden, so that it is never taken for an image
BATCHES_AHEAD = 3  # decoded while the network computes: bounds the memory

Query = str | Path | Image.Image


@dataclass(frozen=True)
class Match:
    """An image that is similar to a query.

    Attributes:
        path: Where it is.
        distance: Euclidean distance of the vectors of length 1, in [0, 2]: 0 for a copy.
        label: Name of the class folder that it lies in; None if it lies in the folder itself.
    """

    path: Path
    distance: float
    label: str | None


@dataclass
class Update:
    """What bringing an index up to date has done.

    Attributes:
        encoded: Images that went through the network.
        known: Files that are new or were touched, moved or copied, with a content that the index had.
        removed: Files that are gone.
        unchanged: Files that were not read.
        errors: What is wrong with each file that can't be read, starting with its path.
    """

    encoded: int = 0
    known: int = 0
    removed: int = 0
    unchanged: int = 0
    errors: list[str] = field(default_factory=list)


class ImageIndex:
    """The images of a folder, as vectors that can be searched. ``open`` makes one.

    Args:
        folder: Where the images are; subfolders are searched, the first level gives the labels.
        encoder: What makes the vectors.
        location: Where the index is kept.
        store: The index, if it is there.
    """

    def __init__(self, folder: Path, encoder: Encoder, location: Path, store: Store | None) -> None:
        self.folder = folder
        self.encoder = encoder
        self.location = location
        self._store = store

    @classmethod
    def open(cls, folder: str | Path, encoder: Encoder, index: str | Path | None = None) -> "ImageIndex":
        """Open the index of a folder; ``update`` makes it if it isn't there yet.

        Args:
            folder: Where the images are.
            encoder: What makes the vectors.
            index: File of the index; None keeps it in the folder.

        Raises:
            UserError: There is no such folder, the index is damaged, or another encoder made it.
        """
        folder = Path(folder)
        location = index_location(folder, index)
        return cls(folder, encoder, location, _open_store(location, encoder) if location.exists() else None)

    @property
    def store(self) -> Store:
        """The index itself.

        Raises:
            UserError: Nothing has been indexed yet.
        """
        if self._store is None:
            raise UserError(f"{self.folder} has no index yet; make it with `python -m retrieval index {self.folder}`")
        return self._store

    def update(self, progress: bool = False, wait: bool = True) -> Update:
        """Bring the index up to date with the folder.

        Files whose size and modification time are unchanged are not read again; others are known by their content, so
        that a file that was moved keeps its vector and copies share one. Each batch is written as it is ready: when the
        process dies, the next update goes on from there. Files that can't be read are left out and reported.

        Args:
            progress: Show a progress bar on stderr.
            wait: Wait for another process that is updating the same index; otherwise raise.

        Returns:
            What has been done.

        Raises:
            UserError: The folder has no images, or the index can't be written.
            Timeout: Another process is updating the index, and ``wait`` is false.
        """
        paths = self._find()
        if not paths and self._store is None:
            raise UserError(f"{self.folder}: no images in this folder ({', '.join(sorted(EXTENSIONS))})")
        if self._store is not None:
            changed, removed, result = self._compare(paths)
            if not changed and not removed:
                return result
        with self._sole_writer(wait):
            if self._store is None:
                self._store = _open_store(self.location, self.encoder, make=True)
            changed, removed, result = self._compare(self._find())  # another process may just have done it
            self.store.remove(removed)
            with (
                contextlib.closing(self._encode(changed, result)) as batches,
                tqdm(total=len(changed), desc="Indexing", unit="img", disable=not progress, delay=1) as bar,
            ):
                for done in batches:
                    bar.update(done)
            if changed or removed:
                self.store.prune()
        return result

    @contextlib.contextmanager
    def _sole_writer(self, wait: bool) -> Iterator[None]:
        """Wait until no other process updates the same index; the lock ends with the process that holds it."""
        lock = FileLock(f"{self.location}.lock", timeout=-1 if wait else 0)
        try:
            lock.acquire()
        except Timeout:
            if self._store is None and self.location.exists():  # which the other process is filling
                self._store = _open_store(self.location, self.encoder)
            raise
        except OSError as error:
            raise UserError(
                f"{self.location}: can't be written there ({reason(error)}): name a file in another folder with --index"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _find(self) -> list[Path]:
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: {'no folder' if self.folder.exists() else 'no such folder'}")
        return find_images(self.folder)

    def _compare(self, paths: list[Path]) -> tuple[list[Path], list[str], Update]:
        """Files to look into, names that are gone, and what is known of the others."""
        records = self._store.records() if self._store is not None else {}
        changed, result = [], Update()
        for path in paths:
            record = records.pop(self._name(path), None)
            try:
                status = path.stat()
                same = record is not None and (record.size, record.mtime_ns) == (status.st_size, status.st_mtime_ns)
            except OSError:
                same = False
            if record is None or not same:
                changed.append(path)
            elif record.error is not None:
                result.errors.append(record.error)
            else:
                result.unchanged += 1
        result.removed = len(records)
        return changed, list(records), result

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _encode(self, paths: list[Path], result: Update) -> Generator[int]:
        """Read, encode and write files, batch by batch; yields how many files each batch had, once it is written."""
        size = self.encoder.batch_size
        known: dict[bytes, tuple[int, int]] = {}
        with ThreadPoolExecutor() as pool:
            jobs: deque[Future[tuple[Record, Pixels | None]]] = deque()
            waiting = iter(paths)
            try:
                while True:
                    room = (1 + BATCHES_AHEAD) * size - len(jobs)
                    jobs.extend(pool.submit(self._read, path, known) for path in islice(waiting, room))
                    if not jobs:
                        return
                    batch = [jobs.popleft().result() for _ in range(min(size, len(jobs)))]
                    self._write(batch, known, result)
                    yield len(batch)
            finally:
                for job in jobs:
                    job.cancel()

    def _read(self, path: Path, known: dict[bytes, tuple[int, int]]) -> tuple[Record, Pixels | None]:
        """Read a file; its pixels only if its content is new."""
        name = self._name(path)
        label = name.partition("/")[0] if "/" in name else None
        record = Record(name, -1, -1, None, label)
        try:
            status = path.stat()
            data = read_bytes(path)
        except OSError as error:
            return replace(record, error=f"{path}: {reason(error)}"), None
        except ImageError as error:  # may be readable the next time, with the file as it is: it stays stale
            return replace(record, error=str(error)), None
        content = digest(data)
        record = replace(record, size=status.st_size, mtime_ns=status.st_mtime_ns)
        if content not in known:
            known.update(self.store.known([content]))
        if content in known:
            width, height = known[content]
            return replace(record, digest=content, width=width, height=height), None
        try:
            image = decode_image(data, path, self.encoder.channels)
        except ImageError as error:
            return replace(record, error=str(error)), None
        record = replace(record, digest=content, width=image.width, height=image.height)
        return record, self.encoder.prepare(image)

    def _write(
        self,
        batch: Sequence[tuple[Record, Pixels | None]],
        known: dict[bytes, tuple[int, int]],
        result: Update,
    ) -> None:
        """Encode the new contents of a batch and write its records."""
        new: dict[bytes, Pixels] = {}
        for record, pixels in batch:
            if record.error is not None:
                result.errors.append(record.error)
            elif pixels is None or record.digest in known:
                result.known += 1
            elif record.digest is not None:
                new[record.digest] = pixels
                known[record.digest] = record.width, record.height
        result.encoded += len(new)
        vectors: dict[bytes, Vectors] = {}
        if new:
            vectors = dict(zip(new, self.encoder.encode(list(new.values())), strict=True))
        self.store.add([record for record, _ in batch], vectors)

    def search(self, query: Query, k: int = 4, include_self: bool = False, label: str | None = None) -> list[Match]:
        """The images of the folder that are most similar to a query.

        Args:
            query: An image, or the path of one.
            k: How many; fewer come back if the folder has fewer.
            include_self: Keep byte-identical copies of the query, which otherwise are left out.
            label: Look only among the images of this class folder.

        Returns:
            The closest first, ties by path.

        Raises:
            UserError: The query can't be read, nothing has been indexed, or k is below 1.
        """
        return self.search_many([query], k, include_self, label)[0]

    def search_many(
        self, queries: Sequence[Query], k: int = 4, include_self: bool = False, label: str | None = None
    ) -> list[list[Match]]:
        """As ``search``, for many queries at once, whose comparison is one matrix product."""
        if k < 1:
            raise UserError(f"k must be at least 1, got {k}")
        read = [read_query(query, self.encoder) for query in queries]
        size = self.encoder.batch_size
        matches: list[list[Match]] = []
        for start in range(0, len(read), size):
            block = read[start : start + size]
            vectors = self.encoder.encode([pixels for pixels, _ in block])
            without = [None if include_self else content for _, content in block]
            for hits in self.store.search(vectors, k, without, label):
                matches.append([Match(self.folder / hit.path, hit.distance, hit.label) for hit in hits])
        return matches

    def close(self) -> None:
        """Let go of the index."""
        if self._store is not None:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def index_location(folder: Path, index: str | Path | None) -> Path:
    """The file that holds a folder's index: in the folder unless it is named."""
    return folder / INDEX_NAME if index is None else Path(index)


def read_query(query: Query, encoder: Encoder) -> tuple[Pixels, bytes | None]:
    """Pixels of a query, (C, H, W), uint8, and the digest of its file; None for an image without a file.

    Raises:
        UserError: The file can't be read.
    """
    if isinstance(query, Image.Image):
        return encoder.prepare(query.convert("L" if encoder.channels == 1 else "RGB")), None
    path = Path(query)
    data = read_bytes(path)
    return encoder.prepare(decode_image(data, path, encoder.channels)), digest(data)


def _open_store(location: Path, encoder: Encoder, make: bool = False) -> Store:
    """Open an index, or make it; refuse one that another encoder made, whose vectors mean something else.

    Raises:
        UserError: Another encoder made it, or as ``SQLiteStore``.
    """
    store = SQLiteStore(location, {**encoder.identity, "source": encoder.source} if make else None)
    for key, value in encoder.identity.items():
        if store.header.get(key) != value:
            store.close()
            raise UserError(
                f"{location} was made with {key} {store.header.get(key)}, not {value}: "
                "query it with the same encoder (it is the default), or name another file with --index"
            )
    return store
