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

    def indices(self) -> npt.NDArray[np.int64]:
        """(M,), int64: the share, in this epoch's order."""
        order = np.arange(self.count)
        if self.shuffle_seed is not None:
            order = np.random.default_rng([self.shuffle_seed, self.epoch]).permutation(order)
        return order[self.rank :: self.world_size]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def __len__(self) -> int:
        return len(range(self.rank, self.count, self.world_size))


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
) -> DataLoader[Batch]:
    """Batches of this process's share of a dataset, each fetched at once.

    Args:
        dataset: The images.
        batch_size: No batch is larger.
        shuffle_seed: Seed of the order, which changes with the epoch; None keeps the images in order.
        rank: Number of this process, from 0.
        world_size: Number of processes.
        reshuffle: Whether the order changes with the epoch.
    """
    sampler = EvenBatchSampler(ShardSampler(len(dataset), rank, world_size, shuffle_seed, reshuffle), batch_size)
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
