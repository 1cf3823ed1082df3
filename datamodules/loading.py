"""Which images make a batch, in which process and in which epoch."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Sampler

from datamodules.dataset import Batch, BatchDataset


class ShardSampler(Sampler[int]):
    """This process's share of the samples, each sample in exactly one process; reshuffled every epoch if asked to.

    Torch's ``DistributedSampler`` repeats samples to make the shares equal, which falsifies metrics.

    Args:
        count: Number of samples.
        rank: Number of this process, from 0.
        world_size: Number of processes.
        shuffle_seed: Seed of the order, which changes with the epoch; None keeps the samples in order.
        reshuffle: Whether the order changes with the epoch.
    """

    def __init__(
        self, count: int, rank: int, world_size: int, shuffle_seed: int | None, reshuffle: bool = True
    ) -> None:
        self.count, self.rank, self.world_size = count, rank, world_size
        self.shuffle_seed = shuffle_seed
        self.reshuffle = reshuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls this before each epoch."""
        if self.reshuffle:
            self.epoch = epoch

    def order(self) -> npt.NDArray[np.int64]:
        """(count,), int64: this epoch's samples of all processes, in order."""
        order = np.arange(self.count)
        if self.shuffle_seed is not None:
            order = np.random.default_rng([self.shuffle_seed, self.epoch]).permutation(order)
        return order

    def indices(self) -> npt.NDArray[np.int64]:
        """(M,), int64: the share, in this epoch's order."""
        return self.order()[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def __len__(self) -> int:
        return len(range(self.rank, self.count, self.world_size))


class BalancedSampler(ShardSampler):
    """The same, with equally many samples of each class: as many as the rarest has, others of the rest in each epoch.

    Args:
        labels: (N,), int64: the class of each sample.
        rank: Number of this process, from 0.
        world_size: Number of processes.
        shuffle_seed: Seed of the choice and its order, which change with the epoch.
        reshuffle: Whether they change with the epoch.
    """

    def __init__(
        self, labels: npt.NDArray[np.int64], rank: int, world_size: int, shuffle_seed: int, reshuffle: bool = True
    ) -> None:
        counts = np.unique(labels, return_counts=True)[1]
        super().__init__(int(counts.min()) * len(counts), rank, world_size, shuffle_seed, reshuffle)
        self._rows = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])

    def order(self) -> npt.NDArray[np.int64]:
        """(count,), int64: this epoch's samples of all processes, in order."""
        assert self.shuffle_seed is not None
        generator = np.random.default_rng([self.shuffle_seed, self.epoch])
        chosen = [generator.permutation(rows)[: self.count // len(self._rows)] for rows in self._rows]
        return generator.permutation(np.concatenate(chosen))


def repeat_rare(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """All N rows, and those of rare classes again, so that each class has an equal share of N rows at least.

    Args:
        labels: (N,), int64.

    Returns:
        (M,), int64, with M below 2 N + K: 0 to N - 1, then the repeated ones.
    """
    classes, counts = np.unique(labels, return_counts=True)
    share = -(-len(labels) // len(classes))
    missing = np.maximum(share - counts, 0)
    again = [np.resize(np.flatnonzero(labels == name), more) for name, more in zip(classes, missing, strict=True)]
    return np.concatenate([np.arange(len(labels)), *again])


class EvenBatchSampler(Sampler[list[int]]):
    """Batches of nearly equal size, the same number of them in every process.

    No batch is so small that batch normalisation suffers, and no process waits for another that has run out.

    Args:
        sampler: This process's share; found by Lightning under this name, for ``set_epoch``.
        batch_size: No batch is larger.
    """

    def __init__(self, sampler: ShardSampler, batch_size: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for batch in np.array_split(self.sampler.indices(), len(self)):
            yield batch.tolist()

    def __len__(self) -> int:
        largest_share = math.ceil(self.sampler.count / self.sampler.world_size)
        return math.ceil(largest_share / self.batch_size)


def batches(
    dataset: BatchDataset,
    batch_size: int,
    shuffle_seed: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    reshuffle: bool = True,
    labels: npt.NDArray[np.int64] | None = None,
) -> DataLoader[Batch]:
    """Batches of this process's share of a dataset, each fetched at once.

    Args:
        dataset: The images.
        batch_size: No batch is larger.
        shuffle_seed: Seed of the order, which changes with the epoch; None keeps the images in order.
        rank: Number of this process, from 0.
        world_size: Number of processes.
        reshuffle: Whether the order changes with the epoch.
        labels: (N,), int64: the class of each image, to have equally many of each; then the order is always random.
    """
    if labels is None:
        share = ShardSampler(len(dataset), rank, world_size, shuffle_seed, reshuffle)
    else:
        share = BalancedSampler(labels, rank, world_size, shuffle_seed or 0, reshuffle)
    sampler = EvenBatchSampler(share, batch_size)
    # The pixels are in memory or mapped: a worker process would only add the cost of handing them over. A generator of
    # its own keeps the loader from drawing on the global random state, which dropout follows, also after a resume.
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=keep_batch,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )


def keep_batch(batch: Any) -> Any:
    """The dataset gives whole batches: there is nothing to collate."""
    return batch
