"""A folder that can be searched: files, encoder and store, tied together."""

import contextlib
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import Timeout
from PIL import Image
from tqdm import tqdm

from datamodules.errors import UserError, reason
from datamodules.images import ImageError, decode_image, find_images, no_images, read_bytes
from datamodules.layout import subset_folders
from datamodules.splits import digest
from retrieval.encoders.base import Encoder, Pixels
from retrieval.encoders.registry import describe_encoder
from retrieval.process_group import ProcessGroup
from retrieval.search import Vectors
from retrieval.stores.base import MissingIndexError, Record, Store
from retrieval.stores.location import Location, find_location, open_store, write_lock

BATCHES_AHEAD = 3  # decoded while the network computes: bounds the memory

Query = str | Path | Image.Image
Size = tuple[int, int]
Batch = tuple[list[Record], dict[bytes, Vectors]]


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


@dataclass
class _Plan:
    """What an update has to do.

    Attributes:
        changed: Names of the files to look into, with their records as yet.
        removed: Names of those that are gone.
        known: Contents of files that stay or are gone, with width and height: their vectors are there until the end.
        result: What is known of the other files.
    """

    changed: dict[str, Record | None] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    known: dict[bytes, Size] = field(default_factory=dict)
    result: Update = field(default_factory=Update)

    def remember(self, record: Record) -> None:
        """Note that the vector of a record's content is there."""
        if record.digest is not None:
            self.known[record.digest] = record.width, record.height


class ImageIndex:
    """The images of a folder, as vectors that can be searched. ``open`` makes one.

    Args:
        folder: Where the images are; subfolders are searched, the first level gives the labels.
        encoder: What makes the vectors.
        location: Where the index is kept: a file, or the address of a collection.
        store: The index; None lets ``update`` look for it.
    """

    def __init__(self, folder: Path, encoder: Encoder, location: Location, store: Store | None = None) -> None:
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
            index: File of the index, or its address on Milvus, ``http://HOST:PORT/COLLECTION``; None keeps it in the
                folder.

        Raises:
            UserError: The index is damaged or can't be reached, or another encoder made it.
        """
        folder = Path(folder)
        location = find_location(folder, index)
        return cls(folder, encoder, location, _open_if_there(location, encoder))

    @property
    def store(self) -> Store:
        """The index itself.

        Raises:
            UserError: Nothing has been indexed yet.
        """
        if self._store is None:
            raise UserError(f"{self.folder} has no index yet; make it with `python -m retrieval index {self.folder}`")
        return self._store

    def update(self, progress: bool = False, wait: bool = True, group: ProcessGroup | None = None) -> Update:
        """Bring the index up to date with the folder.

        Files whose size and modification time are unchanged are not read again; others are known by their content, so
        that a file that was moved keeps its vector and copies share one. Each batch is written as it is ready: when the
        process dies, the next update goes on from there. Files that can't be read are left out and reported.

        Args:
            progress: Show a progress bar on stderr.
            wait: Wait for another process that is updating the same file; otherwise raise.
            group: The processes that do it together, each of which calls this.

        Returns:
            What has been done; for the leader of a group by all of them, for the others by themselves.

        Raises:
            UserError: The folder has no images, or the index can't be written.
            Timeout: Another process is updating the index, and ``wait`` is false.
        """
        group = group or ProcessGroup()
        with contextlib.ExitStack() as locks:
            plan = group.share(lambda: self._plan(locks, wait))
            if group.rank > 0:
                plan.result = Update()
            if plan.changed:
                self._work(plan, group, progress and group.rank == 0)
            results = group.gather(plan.result)  # which also waits for all
            if group.rank == 0 and self._store is not None:
                if plan.removed:
                    self._store.remove(plan.removed)
                self._store.compact(progress)
        return _total(results) if results else plan.result

    def _plan(self, locks: contextlib.ExitStack, wait: bool) -> _Plan:
        """Find out what is to be done; if there is anything, make the index if it isn't there, and lock it."""
        paths = self._find()
        self._store = self._store or _open_if_there(self.location, self.encoder)
        if not paths and self._store is None:
            raise no_images(self.folder)
        if self._store is not None:
            plan = self._compare(self._store, paths)
            if not isinstance(self.location, Path) or not (plan.changed or plan.removed):
                return plan  # there is no lock to wait for, or nothing to do
        try:
            locks.enter_context(write_lock(self.location, wait))
        except Timeout:
            self._store = self._store or _open_if_there(self.location, self.encoder)  # which the other is filling
            raise
        if self._store is None:
            self._store = _open_store(self.location, self.encoder, make=True)
        return self._compare(self._store, self._find())  # another process may just have done it

    @cached_property
    def _subsets(self) -> set[Path]:
        """Folders that are no class: train/, val/ and test/, where the class folders are in each."""
        return set(subset_folders(self.folder).values())

    def _label_of(self, name: str) -> str | None:
        """Name of the class folder that a file lies in; None if it lies in the folder itself."""
        folders = name.split("/")[:-1]
        if len(folders) > 1 and self.folder / folders[0] in self._subsets:
            folders = folders[1:]
        return folders[0] if folders else None

    def _find(self) -> list[Path]:
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: {'no folder' if self.folder.exists() else 'no such folder'}")
        return find_images(self.folder)

    def _compare(self, store: Store, paths: list[Path]) -> _Plan:
        records = store.records()
        plan = _Plan()
        for path in paths:
            name = path.relative_to(self.folder).as_posix()
            record = records.pop(name, None)
            try:
                status = path.stat()
                same = record is not None and (record.size, record.mtime_ns, record.label) == (
                    status.st_size,
                    status.st_mtime_ns,
                    self._label_of(name),  # another one where the folder has come to be split
                )
            except OSError:
                same = False
            if record is None or not same:
                plan.changed[name] = record
            elif record.error is not None:
                plan.result.errors.append(record.error)
            else:
                plan.result.unchanged += 1
                plan.remember(record)
        for name, record in records.items():
            plan.removed.append(name)
            plan.remember(record)
        plan.result.removed = len(plan.removed)
        return plan

    def _work(self, plan: _Plan, group: ProcessGroup, progress: bool) -> None:
        """Read, encode and write what has changed, each of a group of N processes every N-th batch.

        The batches are the same ones whatever the size of the group. A file is written by the leader alone, to whom the
        others give what they have encoded; to Milvus each writes for itself.
        """
        one_writer = isinstance(self.location, Path)
        if group.rank > 0 and not one_writer:
            self._store = _open_store(self.location, self.encoder)
        size = self.encoder.batch_size
        names = list(plan.changed)
        starts = range(0, len(names), size)
        mine = [name for start in starts[group.rank :: group.size] for name in names[start : start + size]]
        total = len(names if one_writer else mine)
        with (
            contextlib.closing(self._encode(mine, plan)) as batches,
            tqdm(total=total, desc="Indexing", unit="img", disable=not progress, delay=1) as bar,
        ):
            for _ in range(-(-len(starts) // group.size)):
                batch: Batch = next(batches, ([], {}))
                for records, vectors in group.gather(batch) if one_writer else [batch]:
                    if records:
                        self.store.add(records, vectors)
                    bar.update(len(records))

    def _encode(self, names: list[str], plan: _Plan) -> Generator[Batch]:
        """Read and encode files, batch by batch, reading ahead."""
        size = self.encoder.batch_size
        with ThreadPoolExecutor() as pool:
            jobs: deque[Future[tuple[Record, Pixels | None]]] = deque()
            waiting = iter(names)
            try:
                while True:
                    room = (1 + BATCHES_AHEAD) * size - len(jobs)
                    jobs.extend(pool.submit(self._read, name, plan) for name in islice(waiting, room))
                    if not jobs:
                        return
                    yield self._encode_batch([jobs.popleft().result() for _ in range(min(size, len(jobs)))], plan)
            finally:
                for job in jobs:
                    job.cancel()

    def _read(self, name: str, plan: _Plan) -> tuple[Record, Pixels | None]:
        """Read a file; its pixels only if its content is new."""
        path = self.folder / name
        record = Record(name, -1, -1, None, self._label_of(name))
        try:
            status = path.stat()
            data = read_bytes(path)
        except OSError as error:
            return replace(record, error=f"{path}: {reason(error)}"), None
        except ImageError as error:  # may be readable the next time, with the file as it is: it stays stale
            return replace(record, error=str(error)), None
        content = digest(data)
        record = replace(record, size=status.st_size, mtime_ns=status.st_mtime_ns)
        before = plan.changed[name]
        if before is not None and before.digest == content:
            return replace(record, digest=content, width=before.width, height=before.height), None
        if content in plan.known:
            width, height = plan.known[content]
            return replace(record, digest=content, width=width, height=height), None
        try:
            image = decode_image(data, path, self.encoder.channels)
        except ImageError as error:
            return replace(record, error=str(error)), None
        record = replace(record, digest=content, width=image.width, height=image.height)
        return record, self.encoder.prepare(image)

    def _encode_batch(self, batch: list[tuple[Record, Pixels | None]], plan: _Plan) -> Batch:
        """Records, and the vectors of those contents that are new."""
        result = plan.result
        new: dict[bytes, Pixels] = {}
        for record, pixels in batch:
            if record.error is not None:
                result.errors.append(record.error)
            elif pixels is None or record.digest in plan.known:
                result.known += 1
            elif record.digest is not None:
                new[record.digest] = pixels
                plan.remember(record)
        result.encoded += len(new)
        vectors = dict(zip(new, self.encoder.encode(list(new.values())), strict=True)) if new else {}
        return [record for record, _ in batch], vectors

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


def _open_if_there(location: Location, encoder: Encoder) -> Store | None:
    try:
        return _open_store(location, encoder)
    except MissingIndexError:
        return None


def _open_store(location: Location, encoder: Encoder, make: bool = False) -> Store:
    """Open an index, or make it; refuse one that another encoder made, whose vectors mean something else.

    Raises:
        UserError: Another encoder made it, or as ``open_store``.
    """
    if make:
        dimension = 0 if isinstance(location, Path) else encoder.dimension
        store = open_store(location, describe_encoder(encoder), dimension)
    else:
        store = open_store(location)
    for key, value in encoder.identity.items():
        if store.header.get(key) != value:
            store.close()
            raise UserError(
                f"{location} was made with {key} {store.header.get(key)}, not {value}: "
                "query it with the same encoder (it is the default), or name another place with --index"
            )
    return store


def _total(results: Sequence[Update]) -> Update:
    total = Update()
    for result in results:
        total.encoded += result.encoded
        total.known += result.known
        total.removed += result.removed
        total.unchanged += result.unchanged
        total.errors += result.errors
    return total
