"""Duplicates as a person reviews them: what is found, what is decided, what is done."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path

from datamodules.errors import UserError, reason
from retrieval.app.client import sentence, uploads
from retrieval.audit import audit
from retrieval.cleanup import (
    KEEP,
    MOVE,
    TRASH,
    PlanRow,
    apply_plan,
    check_keep,
    find_groups,
    locked,
    make_plan,
    undo,
    write_plan,
)
from retrieval.index import ImageIndex

GROUPS = 10  # that are shown at once

Group = tuple[PlanRow, ...]


@dataclass(frozen=True)
class Review:
    """Groups of duplicates, some of which are shown.

    Attributes:
        groups: Each with what to keep and what to move, from the best image to the worst.
        first: Place of the first group that is shown.
    """

    groups: tuple[Group, ...] = ()
    first: int = 0

    @classmethod
    def of(cls, plan: Iterable[PlanRow]) -> "Review":
        """The groups of a plan."""
        return cls(tuple(tuple(rows) for _, rows in groupby(plan, key=lambda row: row.group)))

    @property
    def shown(self) -> tuple[Group, ...]:
        """The groups that are shown."""
        return self.groups[self.first : self.first + GROUPS]

    def turn(self, step: int) -> "Review":
        """Show the groups before (-1) or behind (1), if there are any."""
        first = self.first + step * GROUPS
        return replace(self, first=first) if 0 <= first < len(self.groups) else self

    def toggle(self, place: int, image: int) -> "Review":
        """Keep an image of a group that is shown where it would move, or move it where it would be kept.

        Raises:
            UserError: The group would keep nothing, or is no longer shown.
        """
        place += self.first
        if place >= len(self.groups) or not 0 <= image < len(self.groups[place]):
            raise UserError("That image is no longer shown: find duplicates again.")
        group = list(self.groups[place])
        group[image] = replace(group[image], action=MOVE if group[image].action == KEEP else KEEP)
        if all(row.action == MOVE for row in group):
            raise UserError("A group keeps one of its images: first choose another one to keep.")
        return replace(self, groups=(*self.groups[:place], tuple(group), *self.groups[place + 1 :]))

    def without(self, done: Sequence[Group]) -> "Review":
        """What is left once groups have been cleaned up."""
        numbers = {group[0].group for group in done}
        left = tuple(group for group in self.groups if group[0].group not in numbers)
        last = max(len(left) - 1, 0) // GROUPS * GROUPS
        return Review(left, min(self.first, last))


def moves(groups: Iterable[Group]) -> list[PlanRow]:
    """The images of groups that are to be moved."""
    return [row for group in groups for row in group if row.action == MOVE]


def size_of(rows: Iterable[PlanRow]) -> str:
    """How much room images take."""
    kilobytes = sum(row.bytes for row in rows) / 1000
    return f"{kilobytes / 1000:.1f} MB" if kilobytes >= 1000 else f"{kilobytes:.1f} kB"


def find_duplicates(
    index: ImageIndex, keep: str, distance: str, advance: Callable[[tuple[int, int]], object] = lambda done: None
) -> tuple[Review, str]:
    """The groups of duplicates in a collection, as ``audit`` finds them, and a line on them.

    Args:
        index: Of the collection.
        keep: What each group keeps, as for ``make_plan``.
        distance: Below which images are near copies, as a person writes it; empty draws it from the data.
        advance: Called with how many images have been compared, and how many there are.

    Raises:
        UserError: One of the settings makes no sense, or as ``make_plan``.
    """
    try:
        given = float(distance) if distance else None
    except ValueError as error:
        raise UserError(f"the distance must be a number such as 0.05, or empty; got {distance}") from error
    check_keep(index.folder, keep)
    records, matrix = index.store.vectors()
    done = 0

    def compared(count: int) -> None:
        nonlocal done
        done += count
        advance((done, len(records)))

    findings, threshold = audit(records, matrix, threshold=given, advance=compared)
    plan = make_plan(index.folder, records, matrix, find_groups(records, findings), threshold, keep)
    review = Review.of(plan)
    closer = f"Near copies are closer than {threshold:.4f}."
    if not plan:
        return review, f"No duplicates among {len(records)} images. {closer}"
    moved = moves(review.groups)
    counts = f"{len(review.groups)} groups with {len(plan)} images, {len(moved)} ({size_of(moved)}) to be moved."
    return review, f"{counts} {closer} Choose an image to move or to keep it."


def put_away(index: ImageIndex, groups: Iterable[Group]) -> str:
    """Move what groups don't keep to the trash, also out of the index; returns a line on it.

    Raises:
        UserError: As ``apply_plan``, or another process is updating the index: nothing has moved.
    """
    with _cleaning(index), tempfile.TemporaryDirectory(dir=uploads()) as home:
        plan = Path(home, "plan.csv")
        write_plan(plan, chain.from_iterable(groups))
        clean_up, moved = apply_plan(index.folder, plan)
    if clean_up is None:
        return "There is nothing to move."
    return _follow(index, f"{moved} images moved to {TRASH}/{clean_up.number}.")


def put_back(index: ImageIndex) -> str:
    """Move back what was moved last, also into the index; returns what is said of it, a line for each that can't.

    Raises:
        UserError: As ``undo``, or another process is updating the index.
    """
    with _cleaning(index):
        clean_up, moved, errors = undo(index.folder)
    if clean_up is None:
        return "There is nothing to move back."
    said = _follow(index, f"{moved} images moved back from {TRASH}/{clean_up.number}.")
    return "\n".join([said, *(sentence(UserError(error), index) for error in errors)])


@contextmanager
def _cleaning(index: ImageIndex) -> Iterator[None]:
    """Move files while nobody else does; what the operating system refuses is an error of one line."""
    try:
        with locked(index.folder, index.location):
            yield
    except OSError as error:
        raise UserError(f"{error.filename or index.folder}: {reason(error)}") from error


def _follow(index: ImageIndex, said: str) -> str:
    """Bring the index up to date with what was moved, also one on Milvus; returns what is said, with why it isn't."""
    try:
        index.update()
    except UserError as error:
        return f"{said} The index can't be brought up to date: {sentence(error, index)}"
    return said
