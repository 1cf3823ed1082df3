"""Decoded images with their labels, and batches of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.errors import UserError

NO_DIGESTS = np.empty((0, 0), np.uint8)
OUTLIER = -1  # the label of an image that shows none of the classes


class Batch(NamedTuple):
    """What a datamodule yields.

    Attributes:
        images: (B, C, H, W): uint8, or float32 in [0, 1] once augmented.
        labels: (B,), int64, rows of ``class_names``.
        indices: (B,), int64, rows of the dataset.
        middles: Of lines, (B, L), float32: where the middle of each sign stands, as a share of the line's width; nan
            where that is not known. None for single signs.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    middles: Tensor | None = None


def as_batch(batch: Any) -> Batch:
    """What any datamodule yields, as a batch: ours, or images and labels as most of PyTorch's data sets have them.

    Raises:
        UserError: It is neither.
    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch):
        images, labels = batch
        return Batch(images, labels, torch.full((len(labels),), -1))
    raise UserError(f"a datamodule must yield a Batch, or images and labels, got {type(batch).__name__}")


@dataclass(frozen=True)
class Collection:
    """Decoded images with their labels, before any split.

    Attributes:
        pixels: (N, C, H, W), uint8; may be mapped from a file.
        labels: (N,), int64.
        digests: (N, D), uint8; equal for byte-identical images.
        names: N names, unique: paths relative to the root for files.
        in_validation: (N,), bool: a split that was made by others; None where it is to be made.
    """

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    digests: npt.NDArray[np.uint8]
    names: list[str]
    in_validation: npt.NDArray[np.bool_] | None = None


def gather(loader: Iterable[Any]) -> "ImageDataset":
    """All images of any datamodule's batches, in memory, rounded to 8 bits: to be looked at."""
    found = [as_batch(batch) for batch in loader]
    pixels = torch.cat([batch.images for batch in found])
    if pixels.is_floating_point():
        pixels = (255 * pixels).round().clamp(0, 255).to(torch.uint8)
    names = [f"image {number}" for number in range(len(pixels))]
    collection = Collection(pixels.numpy(), torch.cat([batch.labels for batch in found]).numpy(), NO_DIGESTS, names)
    return ImageDataset(collection, np.arange(len(pixels)))


class BatchDataset(Dataset[Batch]):
    """A data set that gives whole batches: a subclass gives ``batch`` and a length."""

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, rows: Sequence[int]) -> Batch:
        """Fetch a batch; the images are uint8."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Batch:
        """One image as a batch of one."""
        return self.batch([index])

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """What PyTorch's DataLoader looks for."""
        return self.batch(rows)


class ImageDataset(BatchDataset):
    """Some of the images of a collection.

    Args:
        collection: Where the images are.
        rows: (M,), int64: which of them.
    """

    def __init__(self, collection: Collection, rows: npt.NDArray[np.int64]) -> None:
        self.collection = collection
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Fetch a batch in one indexing; the images are uint8."""
        chosen = self.rows[rows]
        return Batch(
            torch.from_numpy(np.asarray(self.collection.pixels[chosen])),
            torch.from_numpy(self.collection.labels[chosen]),
            torch.as_tensor(rows, dtype=torch.int64),
        )

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(M,), int64."""
        return self.collection.labels[self.rows]

    def class_counts(self, classes: int) -> npt.NDArray[np.int64]:
        """(K,), int64: images of each of so many classes, without those that show none of them."""
        return np.bincount(self.labels[self.labels != OUTLIER], minlength=classes)

    @property
    def names(self) -> list[str]:
        """M names, in the order of the rows."""
        return [self.collection.names[row] for row in self.rows]
