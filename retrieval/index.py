"""A folder that can be searched: files, encoder and store, tied together."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from PIL import Image

from datamodules.errors import UserError
from datamodules.images import decode_image, read_bytes
from datamodules.splits import digest
from retrieval.encoders.base import Encoder, Pixels
from retrieval.process_group import ProcessGroup
from retrieval.stores.base import MissingIndexError, Store
from retrieval.stores.location import Location, find_location
from retrieval.update import Update, Updater, open_index

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
                raise UserError(
                    f"{self.folder} has no index yet; create it with `python -m retrieval index {self.folder}`"
                ) from error
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
        return Updater(self.folder, self.encoder, self.location, group).run(progress, wait)

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
        """Close the index."""
        if self._store is not None:
            self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
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
    return encoder.prepare(decode_image(data, path, encoder.channels, encoder.max_side)), digest(data)
