"""Bring the index of a folder up to date: find what has changed, encode it, write it."""

import contextlib
from collections import deque
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from datamodules.errors import UserError, reason
from datamodules.images import ImageError, check_folder, decode_image, find_images, image_size, no_images, read_bytes
from datamodules.layout import subset_folders
from datamodules.splits import digest
from retrieval.encoders.base import CROPS, Encoder, Pixels
from retrieval.encoders.registry import describe_encoder
from retrieval.match_distance import match_distance
from retrieval.process_group import ProcessGroup
from retrieval.search import Vectors
from retrieval.stores.base import MissingIndexError, Record, Store
from retrieval.stores.location import Location

BATCHES_AHEAD = 3  # decoded while the network computes: bounds the memory

Batch = tuple[list[Record], dict[bytes, Vectors]]
Storage = Literal["float32", "float16"]


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

    def __add__(self, other: "Update") -> "Update":
        return Update(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass
class _Plan:
    """What an update has to do.

    Attributes:
        changed: Names of the files to look into, with their records so far.
        removed: Names of those that are gone.
        known: Contents, with width and height, whose vectors are there until the end.
        result: What is known of the other files.
        crops: Whether crops of the images have vectors, too.
        incomplete: Whether the update before was killed.
    """

    changed: dict[str, Record | None] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    known: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    result: Update = field(default_factory=Update)
    crops: bool = False
    incomplete: bool = False

    @property
    def has_work(self) -> bool:
        """Whether the index changes."""
        return bool(self.changed or self.removed or self.incomplete)

    def remember(self, record: Record) -> None:
        """Note that the vector of a record's content is there."""
        if record.digest is not None:
            self.known[record.digest] = record.width, record.height


class Updater:
    """Brings the index of a folder up to date.

    Args:
        folder: Where the images are; subfolders are searched, the first level gives the labels.
        encoder: What makes the vectors.
        location: Where the index is kept.
        group: The processes that do it together, each of which has an updater.
        verify: Read all files again, also those whose size and time are the same.
        crops: Make a new index with vectors of four crops of each image, beside that of the whole.
        storage: How a new index keeps its vectors; None means float32.
    """

    def __init__(
        self,
        folder: Path,
        encoder: Encoder,
        location: Location,
        group: ProcessGroup | None = None,
        verify: bool = False,
        crops: bool = False,
        storage: Storage | None = None,
    ) -> None:
        self.folder = folder
        self.encoder = encoder
        self.location = location
        self.verify = verify
        self.crops = crops
        self.storage = storage
        self.group = group or ProcessGroup()
        self._store: Store | None = None

    def run(self, progress: bool = False, wait: bool = True) -> Update:
        """Update the index; see ``ImageIndex.update``."""
        group, leads = self.group, self.group.rank == 0
        self._store = None
        with contextlib.ExitStack() as opened:
            plan = group.share(lambda: self._begin(opened, wait))
            if not leads:
                plan.result = Update()
                if plan.changed and self.location.shared:
                    self._store = opened.enter_context(open_index(self.location, self.encoder))
            if plan.changed:
                self._work(plan, progress and leads)
            results = group.gather(plan.result)  # which also waits for all
            if leads and self._store is not None:
                if plan.removed:
                    self._store.remove(plan.removed)
                if plan.has_work or self.location.shared:  # where `exact_up_to` may be another one
                    self._store.compact(progress)
                if plan.has_work:
                    self._store.keep_match_distance(match_distance(self._store))
        return sum(results, Update()) if leads else plan.result

    def _begin(self, opened: contextlib.ExitStack, wait: bool) -> _Plan:
        """Before anything is written, note that: a process that is killed leaves the rest to the next update."""
        plan = self._prepare(opened, wait)
        if self._store is not None and plan.has_work:
            self._store.begin_update()
        return plan

    def _prepare(self, opened: contextlib.ExitStack, wait: bool) -> _Plan:
        """Find out what is to be done; if there is anything, lock the index, and create it if there is none."""
        if self._options and self.location.shared:
            raise UserError("--crops and --storage float16 are for files, not for Milvus: leave them or --index out")
        paths = self._find()
        try:
            self._store = opened.enter_context(open_index(self.location, self.encoder))
        except MissingIndexError:
            if not paths:
                raise no_images(self.folder) from None
        else:
            header = self._store.header
            asked = {
                "--crops": self.crops and "crops" not in header,
                f"--storage {self.storage}": self.storage not in (None, header.get("storage", "float32")),
            }
            if lacks := " ".join(option for option, missing in asked.items() if missing):
                raise UserError(
                    f"{self.location} was made without {lacks}: delete it, or name another place with --index"
                )
            plan = self._compare(self._store, paths)
            if self.location.shared or not plan.has_work:
                return plan  # there is no lock to wait for, or nothing to do
        opened.enter_context(self.location.write_lock(wait))
        if self._store is None:
            self._store = opened.enter_context(open_index(self.location, self.encoder, self._options))
        return self._compare(self._store, self._find())  # another process may just have done it

    @property
    def _options(self) -> dict[str, str]:
        """What the header of a new index has beside the encoder."""
        crops = {"crops": str(CROPS)} if self.crops else {}
        return {**crops, "storage": "float16"} if self.storage == "float16" else crops

    @cached_property
    def _subsets(self) -> set[Path]:
        """Folders that are not classes: train/, val/ and test/, where each has the class folders in it."""
        return set(subset_folders(self.folder).values())

    def _label_of(self, name: str) -> str | None:
        """Name of the class folder that a file lies in; None if it lies in the folder itself."""
        folders = name.split("/")[:-1]
        if len(folders) > 1 and self.folder / folders[0] in self._subsets:
            folders = folders[1:]
        return folders[0] if folders else None

    def _find(self) -> list[Path]:
        check_folder(self.folder)
        return find_images(self.folder)

    def _compare(self, store: Store, paths: list[Path]) -> _Plan:
        records = store.records()
        if records and not paths:
            raise UserError(
                f"{self.folder}: no images in this folder, {len(records)} in its index {store.location}: "
                "is its disk not mounted? If they are gone for good, delete the index"
            )
        plan = _Plan(crops="crops" in store.header, incomplete=store.is_updating())
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
            if record is not None and record.error is not None and self._read(name, plan)[0] == record:
                plan.result.errors.append(self._said_of(record))  # it still can't be read
            elif record is None or record.error is not None or not same or self.verify:
                plan.changed[name] = record
                if record is not None and store.keeps_replaced:  # by another file, where files were renamed in turn
                    plan.remember(record)
            else:
                plan.result.unchanged += 1
                plan.remember(record)
        for name, record in records.items():
            plan.removed.append(name)
            plan.remember(record)
        plan.result.removed = len(plan.removed)
        return plan

    def _work(self, plan: _Plan, progress: bool) -> None:
        """Read, encode and write what has changed, each of a group of N processes every N-th batch.

        The batches are the same ones whatever the size of the group. To a shared index each process writes for itself;
        to any other the leader alone, to whom the others give what they have encoded.
        """
        group, shared, size = self.group, self.location.shared, self.encoder.batch_size
        names = list(plan.changed)
        starts = range(0, len(names), size)
        mine = [name for start in starts[group.rank :: group.size] for name in names[start : start + size]]
        total = len(mine if shared else names)
        with (
            contextlib.closing(self._encode(mine, plan)) as batches,
            tqdm(total=total, desc="Indexing", unit="img", disable=not progress, delay=1) as bar,
        ):
            for _ in range(-(-len(starts) // group.size)):
                batch: Batch = next(batches, ([], {}))
                for records, vectors in [batch] if shared else group.gather(batch):
                    if records:
                        assert self._store is not None
                        self._store.add(records, vectors)
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
        unread = Record(name, -1, -1, None, self._label_of(name))  # no size and time of a file: it stays stale

        def failed(error: ImageError) -> tuple[Record, None]:
            # Without the path, which depends on where the folder is named from.
            return replace(unread, error=str(error).removeprefix(f"{path}: ")), None

        try:
            status = path.stat()
            data = read_bytes(path)
        except OSError as error:
            return failed(ImageError(reason(error)))
        except ImageError as error:
            return failed(error)
        content = digest(data)
        record = replace(unread, size=status.st_size, mtime_ns=status.st_mtime_ns)
        before = plan.changed.get(name)
        if before is not None and before.digest == content:
            return replace(record, digest=content, width=before.width, height=before.height), None
        if content in plan.known:
            width, height = plan.known[content]
            return replace(record, digest=content, width=width, height=height), None
        try:
            image = decode_image(data, path, self.encoder.channels, self.encoder.max_side)
        except ImageError as error:
            return failed(error)
        width, height = image_size(data)
        record = replace(record, digest=content, width=width, height=height)
        return record, self.encoder.prepare(image)

    def _said_of(self, record: Record) -> str:
        """What is wrong with a file, and which it is."""
        return f"{self.folder / record.path}: {record.error}"

    def _encode_batch(self, batch: list[tuple[Record, Pixels | None]], plan: _Plan) -> Batch:
        """Records, and the vectors of those contents that are new."""
        result = plan.result
        new: dict[bytes, Pixels] = {}
        for record, pixels in batch:
            if record.error is not None:
                result.errors.append(self._said_of(record))
            elif pixels is None or record.digest in plan.known:
                result.known += 1
            elif record.digest is not None:
                new[record.digest] = pixels
                plan.remember(record)
        result.encoded += len(new)
        encode = self.encoder.encode_crops if plan.crops else self.encoder.encode
        vectors = dict(zip(new, encode(list(new.values())), strict=True)) if new else {}
        return [record for record, _ in batch], vectors


def open_index(location: Location, encoder: Encoder, create_with: Mapping[str, str] | None = None) -> Store:
    """Open an index, or create it; refuse one that another encoder made, whose vectors mean something else.

    Args:
        location: Where it is kept.
        encoder: What makes the vectors.
        create_with: Creates an index if there is none, with this in its header beside the encoder.

    Raises:
        UserError: Another encoder made it, or as ``Location.open``.
    """
    if create_with is None:
        store = location.open()
    else:
        store = location.open({**describe_encoder(encoder), **create_with}, encoder.dimension)
    for key, value in encoder.identity.items():
        if store.header.get(key) != value:
            store.close()
            raise UserError(
                f"{location} was made with {key} {store.header.get(key)}, not {value}: "
                "query it with the same encoder (it is the default), or name another place with --index"
            )
    return store
