"""Processes that work together, as ``torchrun`` starts them (https://docs.pytorch.org/docs/stable/elastic/run.html)."""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from datamodules.errors import UserError

T = TypeVar("T")

PATIENCE = timedelta(days=1)  # rank 0 may look through a very large folder while the others wait


class ProcessGroup:
    """Processes that work together; the one of rank 0 leads. ``ProcessGroup()`` is one process alone.

    Args:
        rank: Which of them this process is.
        size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    def share(self, compute: Callable[[], T]) -> T:
        """What the leader computes, for all of them.

        Raises:
            UserError: Computing it has failed; the other processes then exit silently.
        """
        if self.size == 1:
            return compute()
        outcome: list[Any] = [None, False]
        mistake = None
        if self.rank == 0:
            try:
                outcome = [compute(), True]
            except UserError as error:
                mistake = error
        with _translate_errors():
            dist.broadcast_object_list(outcome)
        if mistake is not None:
            raise mistake
        if not outcome[1]:
            raise SystemExit(1)
        result: T = outcome[0]
        return result

    def gather(self, value: T) -> list[T]:
        """The values of all of them, by rank, for the leader; the others get none."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _translate_errors():
            dist.gather_object(value, values if self.rank == 0 else None)
        return values if self.rank == 0 else []


@contextlib.contextmanager
def torchrun_group() -> Iterator[ProcessGroup]:
    """All processes of the ``torchrun`` that has started this one, each with a GPU of its own, or this one alone.

    Raises:
        UserError: The others can't be reached.
    """
    if not dist.is_torchelastic_launched():
        yield ProcessGroup()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    with _translate_errors():
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that torch.distributed raises when a connection breaks
        raise UserError(
            "another process of this torchrun has ended or can't be reached: run the command again, "
            "it goes on from what has been written"
        ) from error
