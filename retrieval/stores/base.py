"""What an index has to keep and answer, wherever it is kept."""

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from datamodules.errors import UserError
from retrieval.search import Vectors

SCHEMA = 2


class MissingIndexError(UserError):
    """Nothing has been indexed there yet."""


@dataclass(frozen=True)
class Record:
    """An image file as it was when it was indexed.

    Attributes:
        path: Relative to the folder, with forward slashes.
        size: Of the file, in bytes; -1 if it is not an image, so that it is read again the next time.
        mtime_ns: When the file was last modified, in nanoseconds; -1 as well.
        digest: 16 bytes that identify its content, by which copies share a vector; None if it is not an image.
        label: Name of the class folder that it lies in; None if it lies in the folder itself.
        width: In pixels, upright; 0 if it is not an image.
        height: In pixels, upright; 0 if it is not an image.
        error: Why it is not an image; None if it is one.
    """

    path: str
    size: int
    mtime_ns: int
    digest: bytes | None
    label: str | None
    width: int = 0
    height: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        path: Relative to the folder, with forward slashes.
        label: Name of its class folder, if it has one.
        distance: Euclidean distance of the vectors of length 1, in [0, 2].
    """

    path: str
    label: str | None
    distance: float


def check_version(location: str, version: int) -> None:
    """Refuse an index of a newer version."""
    if version > SCHEMA:
        raise UserError(
            f"{location}: written by a newer version of digitdoodle (index version {version}, this one knows "
            f"{SCHEMA}): update digitdoodle, or name another place with --index"
        )


def migrate(header: Mapping[str, str]) -> dict[str, str]:
    """Convert a header of schema 1 to schema 2, which has what builds the encoder as JSON."""
    source, name = header["source"], header["encoder"]
    if name.startswith("resnet"):
        weights = None if source == "torchvision" else source
        preprocessing = header["preprocessing"].partition(" ")[0]
        arguments = {"name": name, "weights": weights, "layer": header["layer"], "preprocessing": preprocessing}
        built = {"class": "ResNetEncoder", "arguments": arguments}
    else:
        built = {"class": "ClassifierEncoder", "arguments": {"path": source}}
    kept = {key: value for key, value in header.items() if key != "source"}
    return {**kept, "built": json.dumps(built)}


class Store(ABC):
    """An index: a record for each file, a vector for each content, and a header that says what made the vectors.

    All methods raise a ``UserError`` when the index can't be reached, read or written.

    Attributes:
        location: Where it is, for messages.
        header: The encoder's identity, and what builds it again; the same as long as the index lives. ``crops`` is how
            many vectors P each content has, where there is more than that of the whole image; ``storage`` is
            ``float16`` where the vectors are rounded to it.
        keeps_replaced: Whether the vector of a record that another one has taken the place of stays until ``compact``.
    """

    keeps_replaced = False
    location: str
    header: Mapping[str, str]

    @abstractmethod
    def records(self) -> dict[str, Record]:
        """All records by path."""

    @abstractmethod
    def labels(self) -> list[str]:
        """The labels of all images, in order."""

    @abstractmethod
    def has_label(self, label: str) -> bool:
        """Whether an image has a label."""

    @abstractmethod
    def revision(self) -> str:
        """Text that is another one once an update has changed the images."""

    @abstractmethod
    def add(self, records: Sequence[Record], vectors: Mapping[bytes, Vectors]) -> None:
        """Write records, and the vectors of contents that are new; both or neither. Once it returns, they stay.

        A vector is (D,), float32, or (P, D) where crops have some, too.
        A record takes the place of an earlier one of the same path; a content without a vector has the one of another
        record that is there.
        """

    @abstractmethod
    def remove(self, paths: Iterable[str]) -> None:
        """Remove files."""

    @abstractmethod
    def compact(self, progress: bool = False) -> None:
        """Complete an update: drop the vectors that no file needs, prepare the rest for searching.

        Args:
            progress: Show a progress bar on stderr.
        """

    @abstractmethod
    def search(
        self, queries: Vectors, k: int, without: Sequence[Collection[bytes]], label: str | None = None
    ) -> list[list[Hit]]:
        """The images that are closest to each query, as a whole or by a crop, the closest first, ties by path.

        Args:
            queries: (Q, D), float32, of length 1.
            k: How many.
            without: For each query the contents that are left out.
            label: Look only among the images of this class folder.
        """

    @abstractmethod
    def sample(self, count: int) -> tuple[list[bytes], Vectors]:
        """At most ``count`` contents, chosen without regard to what they show, and (N, D), float32, their vectors.

        As for ``vectors``, those of the whole images.
        """

    @abstractmethod
    def match_distance(self) -> float | None:
        """What ``keep_match_distance`` was last called with; None if it never was."""

    @abstractmethod
    def begin_update(self) -> None:
        """Note that the index is about to change, until ``keep_match_distance`` is called."""

    @abstractmethod
    def is_updating(self) -> bool:
        """Whether an update has begun and isn't completed: it is at work, or was killed."""

    @abstractmethod
    def keep_match_distance(self, distance: float) -> None:
        """Keep the distance beyond which nothing is similar, in [0, 2] or infinite: the update is complete."""

    @abstractmethod
    def vectors(self) -> tuple[list[Record], Vectors]:
        """The N records that are images, by path, and (N, D), float32, their vectors."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection, or the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
