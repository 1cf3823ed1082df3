"""A folder that can be searched: files, encoder and store, tied together."""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from datamodules.errors import UserError
from retrieval.encoders.base import Encoder
from retrieval.match_distance import FEWEST, match_distance
from retrieval.process_group import ProcessGroup
from retrieval.query import Query, encode_queries
from retrieval.stores.base import Hit, MissingIndexError, Store
from retrieval.stores.location import Location, find_location, no_index
from retrieval.update import Storage, Update, Updater, open_index


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


class ImageIndex:
    """The images of a folder, as vectors that can be searched. ``open`` makes one.

    Args:
        folder: Where the images are; subfolders are searched, the first level gives the labels.
        encoder: What makes the vectors.
        location: Where the index is kept.
        store: The index; None lets it be opened when it is needed.
    """

    def __init__(self, folder: Path, encoder: Encoder, location: Location, store: Store | None = None) -> None:
        self.folder = folder
        self.encoder = encoder
        self.location = location
        self._store = store

    @classmethod
    def open(cls, folder: str | Path, encoder: Encoder, index: str | Path | None = None) -> "ImageIndex":
        """Open the index of a folder; ``update`` creates it if there is none yet.

        Args:
            folder: Where the images are.
            encoder: What makes the vectors.
            index: File of the index, or its address on Milvus, ``http://HOST:PORT/COLLECTION``; None keeps it in the
                folder.

        Raises:
            UserError: The index is damaged or can't be reached, or another encoder made it.
        """
        folder = Path(folder)
        opened = cls(folder, encoder, find_location(folder, index))
        with contextlib.suppress(MissingIndexError):
            opened._store = open_index(opened.location, encoder)
        return opened

    @property
    def store(self) -> Store:
        """The index itself.

        Raises:
            UserError: Nothing has been indexed yet.
        """
        if self._store is None:
            try:
                self._store = open_index(self.location, self.encoder)
            except MissingIndexError as error:
                raise no_index(self.folder, self.location) from error
        return self._store

    def update(
        self,
        progress: bool = False,
        wait: bool = True,
        group: ProcessGroup | None = None,
        verify: bool = False,
        crops: bool = False,
        storage: Storage | None = None,
    ) -> Update:
        """Bring the index up to date with the folder.

        Files whose size and modification time are unchanged are not read again; others are known by their content, so
        that a file that was moved keeps its vector and copies share one. Each batch is written as it is ready: when the
        process dies, the next update goes on from there. Files that can't be read are left out and reported.

        Args:
            progress: Show a progress bar on stderr.
            wait: Wait for another process that is updating the same file; otherwise raise.
            group: The processes that do it together, each of which calls this.
            verify: Read all files again, also those whose size and time are the same.
            crops: Make a new index with vectors of four overlapping crops of each image beside that of the whole, so
                that a part of an image finds it; it stays so from then on.
            storage: Make a new index whose vectors are rounded to ``float16``, half as large; it stays so from then on.
                None goes on as it is, and takes ``float32`` for a new one.

        Returns:
            What has been done; for the leader of a group by all of them, for the others by themselves.

        Raises:
            UserError: The folder has no images, the index can't be written, or was made with other options than these.
            Timeout: Another process is updating the index, and ``wait`` is false.
        """
        return Updater(self.folder, self.encoder, self.location, group, verify, crops, storage).run(progress, wait)

    def search(
        self,
        query: Query,
        k: int = 4,
        include_self: bool = False,
        label: str | None = None,
        max_distance: float | Literal["auto"] | None = None,
    ) -> list[Match]:
        """The images of the folder that are most similar to a query.

        Args:
            query: An image, or the path of one; an ``Example`` for a part of one; or several of those, where a negative
                weight means that something else is looked for.
            k: How many; fewer come back if the folder has fewer.
            include_self: Keep byte-identical copies of the query's files, which otherwise are left out.
            label: Look only among the images of this class folder.
            max_distance: Leave out what is further away, in [0, 2]; ``auto`` is ``match_distance``, beyond which an
                image is the closest by chance.

        Returns:
            The closest first, ties by path; none where nothing is close enough.

        Raises:
            UserError: The query can't be read, its region does not lie in it, its images cancel each other out, nothing
                has been indexed, the label is that of no image, k is below 1, or the collection is too small for
                ``auto``.
        """
        return self.search_many([query], k, include_self, label, max_distance)[0]

    def search_many(
        self,
        queries: Sequence[Query],
        k: int = 4,
        include_self: bool = False,
        label: str | None = None,
        max_distance: float | Literal["auto"] | None = None,
    ) -> list[list[Match]]:
        """As ``search``, for many queries at once, whose comparison is one matrix product."""
        if k < 1:
            raise UserError(f"k must be at least 1, got {k}")
        if label is not None and not self.store.has_label(label):
            labels = self.store.labels()
            known = f"there are {', '.join(labels)}" if labels else "no image lies in a class folder"
            raise UserError(f"no image has the label {label}: {known}")
        reach = self.match_distance if max_distance == "auto" else 2.0 if max_distance is None else max_distance
        if not queries:
            return []
        vectors, contents = encode_queries(queries, self.encoder)
        without = [set() for _ in contents] if include_self else contents
        size = self.encoder.batch_size
        found: list[list[Hit]] = []
        for start in range(0, len(vectors), size):
            part = slice(start, start + size)
            found += self.store.search(vectors[part], k, without[part], label)
        return [
            [Match(self.folder / hit.path, hit.distance, hit.label) for hit in hits if hit.distance <= reach]
            for hits in found
        ]

    @property
    def match_distance(self) -> float:
        """The distance beyond which nothing in the folder is similar to a query, in [0, 2]; see ``match_distance``.

        Raises:
            UserError: The folder has too few images to tell.
        """
        distance = self.store.match_distance()
        if distance is None:  # an index of before, or a new one that isn't complete
            distance = match_distance(self.store)
        if math.isinf(distance):
            raise UserError(f"{self.folder}: fewer than {FEWEST} different images: too few to tell a match from chance")
        return distance

    def close(self) -> None:
        """Close the index."""
        if self._store is not None:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
