"""Clean up duplicates: a plan that a person may edit, its moves into a trash folder, and the way back.

A clean-up is a folder in the trash: the images that were moved to it and a journal, a copy of the plan, which stands
there before the first image moves. Each move is one rename, and the journal's name says whether all are done. Whatever
ends the process leaves each image in one place or the other, and either direction can be gone on with.
"""

import contextlib
import csv
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path, PurePosixPath

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from datamodules.errors import UserError, reason
from datamodules.images import read_bytes, read_image
from datamodules.splits import digest
from datamodules.text import printable
from datamodules.writing import write_csv
from retrieval.audit import Finding
from retrieval.search import Vectors
from retrieval.stores.base import Record
from retrieval.stores.location import Location

KEEP, MOVE = "keep", "move"
CRITERIA = ("largest", "sharpest", "oldest")
ALIKE = 0.9  # of the greatest sharpness from which images are equally sharp: compressing one again changes it by less
TRASH = ".digitdoodle-trash"  # hidden, so that nothing in it is taken for an image
LOCK = f"{TRASH}.lock"


@dataclass(frozen=True)
class PlanRow:
    """What is to be done with an image of a group.

    Attributes:
        group: Number of the group, from 1.
        action: ``keep`` or ``move``.
        kind: ``duplicate`` (byte-identical) or ``near-duplicate`` of ``like``; empty for an image that is kept.
        path: The image, relative to the folder.
        like: The closest image that is kept; empty for an image that is kept.
        distance: From the vector of ``like``, in [0, 2].
        width: In pixels, upright.
        height: In pixels, upright.
        bytes: Size of the file.
        digest: Of the file's content, in hexadecimal: by it a file that has changed since is known.
    """

    group: int
    action: str
    kind: str
    path: str
    like: str
    distance: float
    width: int
    height: int
    bytes: int
    digest: str


@dataclass(frozen=True)
class CleanUp:
    """The images that a plan has moved to the trash.

    Args:
        folder: Where the images were.
        number: Of the clean-up, from 1.
    """

    folder: Path
    number: int

    @property
    def place(self) -> Path:
        """Where the images are now, by their paths."""
        return self.folder / TRASH / str(self.number)

    @property
    def unfinished(self) -> Path:
        """The journal while images move, in either direction; hidden, so that it is never an image's name."""
        return self.place / ".unfinished.csv"

    @property
    def finished(self) -> Path:
        """The journal once all images have moved."""
        return self.place / ".finished.csv"

    @property
    def rows(self) -> list[PlanRow]:
        """What the journal says."""
        return read_plan(self.unfinished if self.unfinished.exists() else self.finished)


def find_groups(records: Sequence[Record], findings: Iterable[Finding]) -> list[list[int]]:
    """Join duplicates and near-duplicates into groups: the rows of the records in each, two or more."""
    from scipy.sparse import coo_array  # takes half a second, which --apply and --undo don't need
    from scipy.sparse.csgraph import connected_components

    rows = {record.path: row for row, record in enumerate(records)}
    pairs = [(rows[found.path], rows[found.other]) for found in findings if found.kind != "label"]
    ends = np.array(pairs, np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(records), len(records)))
    groups: dict[int, list[int]] = defaultdict(list)
    if pairs:
        for row, group in enumerate(connected_components(graph, directed=False)[1].tolist()):
            groups[group].append(row)
    return [group for group in groups.values() if len(group) > 1]


def make_plan(
    folder: Path,
    records: Sequence[Record],
    matrix: Vectors,
    groups: Iterable[Sequence[int]],
    threshold: float,
    keep: str = "largest",
) -> list[PlanRow]:
    """Choose what each group keeps.

    The best image is kept, and so is each further one, from the best to the worst, that is not closer than the
    threshold to one that is kept (non-maximum suppression): the ends of a chain need not resemble each other. Links
    take no room and are left out; what one of them points to is kept.

    Args:
        folder: Where the images are.
        records: N images.
        matrix: (N, D), float32, their vectors.
        groups: Rows of the images in each group, as from ``find_groups``.
        threshold: Images that are closer than this are near-duplicates.
        keep: The best is the ``largest`` in pixels and then in bytes, the ``sharpest``, the ``oldest`` by its time of
            modification, or one that lies in this folder, relative to the other; ties by ``largest``, then by path,
            ``a.jpg`` before ``a (1).jpg``.

    Returns:
        The groups that have something to move, the images of each from the best to the worst.

    Raises:
        UserError: An image whose sharpness is asked for can't be read.
    """
    plan: list[PlanRow] = []
    for group in groups:
        links = {row for row in group if (folder / records[row].path).is_symlink()}
        pointed_to = {(folder / records[row].path).resolve() for row in links}
        number = plan[-1].group + 1 if plan else 1
        kept: list[int] = []
        chosen = []
        for row in _best_first(folder, records, [row for row in group if row not in links], keep):
            record = records[row]
            assert record.digest is not None
            kind, like, distance = "", "", 0.0
            if kept and (folder / record.path).resolve() not in pointed_to:
                distances = np.linalg.norm(matrix[kept] - matrix[row], axis=1)
                closest = records[kept[distances.argmin()]]
                same = closest.digest == record.digest
                if same or distances.min() < threshold:
                    kind = "duplicate" if same else "near-duplicate"
                    like, distance = closest.path, float(distances.min())
            if not kind:
                kept.append(row)
            shape = record.width, record.height, record.size
            action = MOVE if kind else KEEP
            chosen.append(PlanRow(number, action, kind, record.path, like, distance, *shape, record.digest.hex()))
        if len(kept) < len(chosen):
            plan += chosen
    return plan


def _best_first(folder: Path, records: Sequence[Record], group: list[int], keep: str) -> list[int]:
    """The rows of a group, in the order in which they deserve to be kept."""
    sharp: dict[int, float] = {}
    if keep == "sharpest":
        side = max((max(records[row].width, records[row].height) for row in group), default=0)
        sharp = {row: sharpness(read_image(folder / records[row].path, channels=1), side) for row in group}
    enough = ALIKE * max(sharp.values(), default=0.0)

    def rank(row: int) -> tuple[float, int, int, str, str]:
        record = records[row]
        first: float = 0
        if keep == "oldest":
            first = record.mtime_ns
        elif keep == "sharpest":
            first = -min(sharp[row], enough)
        elif keep != "largest":
            first = not PurePosixPath(record.path).is_relative_to(keep)
        stem = str(PurePosixPath(record.path).with_suffix(""))
        return first, -record.width * record.height, -record.size, stem, record.path

    return sorted(group, key=rank)


def sharpness(image: Image.Image, side: int) -> float:
    """Variance of the Laplacian: Pech-Pacheco et al. 2000, "Diatom autofocusing in brightfield microscopy".

    The measure depends on the scale, so images are compared at one size. It is taken of a Gaussian of 1 pixel, without
    which the blocks of a JPEG count as sharp; grain still does.

    Args:
        image: Of mode ``L``.
        side: How long the longer side is when it is measured, in pixels.
    """
    from scipy import ndimage  # as in find_groups

    width, height = (max(round(length * side / max(image.size)), 1) for length in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    return float(ndimage.gaussian_laplace(pixels, sigma=1).var())


def check_keep(folder: Path, keep: str) -> None:
    """Refuse what is neither a criterion nor a folder in the folder.

    Raises:
        UserError: It is neither.
    """
    if keep not in CRITERIA and not (_is_plain(PurePosixPath(keep).as_posix()) and (folder / keep).is_dir()):
        raise UserError(f"--keep {keep}: neither {', '.join(CRITERIA)} nor a folder in {folder}, relative to it")


def write_plan(path: Path, rows: Iterable[PlanRow]) -> None:
    """Write a plan as CSV, a row for each image.

    Raises:
        OSError: It can't be written.
    """
    write_csv(path, [[field.name for field in fields(PlanRow)], *map(astuple, rows)])


def read_plan(path: Path) -> list[PlanRow]:
    """Read a plan that a person may have edited.

    Raises:
        UserError: It is missing or no plan, or, with the row in the message: a path is listed twice or leads out of the
            folder or to a hidden file, an action is misspelt, or a group keeps nothing.
    """
    names = [field.name for field in fields(PlanRow)]
    rows: list[PlanRow] = []
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:  # spreadsheets write a BOM
            reader = csv.DictReader(file)
            if not set(names) <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: not a plan, a CSV file with commas and the columns {', '.join(names)}")
            for number, cells in enumerate(reader, 2):
                rows.append(_parse([cells[name] or "" for name in names], f"{path}, row {number}"))
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from error
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error})") from error
    kept = {row.group for row in rows if row.action == KEEP}
    seen: set[str] = set()
    for number, row in enumerate(rows, 2):
        problem = None
        if not _is_plain(row.path):
            problem = "not the path of an image in the folder, relative to it"
        elif row.path in seen:
            problem = "listed twice"
        elif row.group not in kept:
            problem = f"group {row.group} keeps none of its images, write {KEEP} in the row of one"
        if problem is not None:
            raise _mistake(path, number, row, problem)
        seen.add(row.path)
    return rows


def _parse(cells: list[str], where: str) -> PlanRow:
    group, action, kind, path, like, distance, width, height, size, content = cells
    if action not in (KEEP, MOVE):
        raise UserError(f"{where}: {printable(path)}: the action is {action!r}, write {KEEP} or {MOVE}")
    try:
        shape = int(width), int(height), int(size)
        return PlanRow(int(group), action, kind, path, like, float(distance), *shape, content)
    except ValueError as error:
        raise UserError(f"{where}: {printable(path)}: not a number where one belongs ({error})") from error


def _mistake(plan: Path, number: int, row: PlanRow, problem: str) -> UserError:
    return UserError(f"{plan}, row {number}: {printable(row.path)}: {problem}")


def _is_plain(path: str) -> bool:
    """Whether a path leads downwards and to nothing hidden, as those of images do, and is the only way to write it."""
    parts = PurePosixPath(path)
    return bool(parts.parts) and parts.as_posix() == path and not any(part[0] in "./" for part in parts.parts)


def _through_link(folder: Path, path: str) -> bool:
    """Whether a path in a folder is a symbolic link, or leads through one."""
    parts = PurePosixPath(path)
    return any((folder / part).is_symlink() for part in (parts, *parts.parents[:-1]))


@contextlib.contextmanager
def locked(folder: Path, location: Location) -> Iterator[None]:
    """Let nobody else update the index of a folder, or clean it up, meanwhile.

    Raises:
        UserError: Another process is doing it, the folder can't be written, or as ``Location.write_lock``.
    """
    lock = FileLock(folder / LOCK, timeout=0)  # a folder may have several indexes, and one on Milvus has no lock
    try:
        with location.write_lock(wait=False), contextlib.ExitStack() as opened:
            try:
                opened.enter_context(lock)
            except Timeout:
                raise
            except OSError as error:
                raise UserError(f"{folder}: no image can be moved there: {reason(error)}") from error
            yield
    except Timeout as error:
        raise UserError(f"{folder}: another process is updating the index or cleaning up; try again later") from error


def find_clean_ups(folder: Path) -> list[CleanUp]:
    """The clean-ups in a folder's trash, by number."""
    trash = folder / TRASH
    names = [entry.name for entry in trash.iterdir()] if trash.is_dir() else []
    found = [CleanUp(folder, int(name)) for name in names if name.isdecimal()]
    found = [each for each in found if each.unfinished.exists() or each.finished.exists()]
    return sorted(found, key=lambda each: each.number)


def check_files(
    folder: Path, plan: Path, rows: Iterable[PlanRow], begun: CleanUp | None, advance: Callable[[int], object]
) -> None:
    """Compare the files of a plan with what it says of them.

    Args:
        folder: Where the images are.
        plan: Where the rows come from, for messages.
        rows: All rows of the plan.
        begun: The clean-up that has moved some of the images already.
        advance: Called with 1 for each row.

    Raises:
        UserError: A file is gone, has changed, is a link or lies behind one, or lies on another disk than the folder.
    """
    disk = folder.stat().st_dev
    for number, row in enumerate(rows, 2):
        path = folder / row.path
        problem = None
        if row.action == MOVE and begun is not None and (begun.place / row.path).exists():
            pass
        elif _through_link(folder, row.path):
            problem = "a link, or behind one; only files are moved"
        elif not path.is_file():
            problem = f"no such file in {folder}"
        elif path.stat().st_dev != disk:
            problem = "on another disk than the folder, so that it can't be moved in one step"
        elif digest(read_bytes(path)).hex() != row.digest:
            problem = "has changed since the plan was written, write it again with --plan"
        if problem is not None:
            raise _mistake(plan, number, row, problem)
        advance(1)


def apply_plan(
    folder: Path, plan: Path, advance: Callable[[int], object] = lambda count: None
) -> tuple[CleanUp | None, int]:
    """Move what a plan says to the trash, or nothing if anything is wrong with it.

    A plan that was interrupted is gone on with; one that has been applied is left alone.

    Args:
        folder: Where the images are.
        plan: File of the plan.
        advance: Called with 1 for each image that was compared with the plan.

    Returns:
        The clean-up, None if there is nothing to move; and how many images it has moved now.

    Raises:
        UserError: As ``read_plan`` and ``check_files``; another plan was interrupted, or an image can't be moved.
    """
    rows = read_plan(plan)
    moves = [row.path for row in rows if row.action == MOVE]
    if not moves:
        return None, 0
    earlier = find_clean_ups(folder)
    begun = next((each for each in earlier if each.unfinished.exists()), None)
    if begun is not None and begun.rows != rows:
        raise UserError(
            f"{begun.place}: this clean-up was interrupted: complete it with --apply {begun.unfinished}, or take it "
            f"back with --undo {begun.number}"
        )
    if begun is None:
        for each in earlier:
            if each.rows == rows and not any((folder / path).exists() for path in moves):
                return each, 0
    check_files(folder, plan, rows, begun, advance)
    if begun is None:
        begun = CleanUp(folder, earlier[-1].number + 1 if earlier else 1)
        begun.place.mkdir(parents=True, exist_ok=True)
        write_plan(begun.unfinished, rows)
        for parent in (begun.place, begun.place.parent, folder):
            _sync(parent)
    waiting = [path for path in moves if not (begun.place / path).exists()]
    for path in waiting:
        _move(folder / path, begun.place / path)
    begun.unfinished.replace(begun.finished)
    return begun, len(waiting)


def undo(folder: Path, number: int = 0) -> tuple[CleanUp | None, int, list[str]]:
    """Move the images of a clean-up back, and forget it. What can't go back stays in the trash, as a clean-up.

    Args:
        folder: Where the images were.
        number: Of the clean-up; 0 for the last one.

    Returns:
        The clean-up, None if there is none; how many images were moved back; and what is wrong with each of the others.

    Raises:
        UserError: There is no clean-up of this number, or an image can't be moved.
    """
    found = [each for each in find_clean_ups(folder) if number in (0, each.number)]
    if not found:
        if number:
            raise UserError(f"{folder}: there is no clean-up {number} in {TRASH}")
        return None, 0, []
    clean_up = found[-1]
    rows = clean_up.rows
    if not clean_up.unfinished.exists():
        clean_up.finished.replace(clean_up.unfinished)
    moved = 0
    errors: list[str] = []
    stuck: set[PlanRow] = set()
    for row in rows:
        trashed, path = clean_up.place / row.path, folder / row.path
        if row.action == KEEP or (path.exists() and not trashed.exists()):  # it never went, or is back already
            continue
        if not trashed.exists():
            errors.append(f"{path}: no longer in the trash")
        elif path.exists() or _through_link(folder, row.path):
            errors.append(f"{path}: something else is there now, {trashed} stays")
            stuck.add(row)
        else:
            _move(trashed, path)
            moved += 1
    if stuck:
        write_plan(clean_up.finished, [row for row in rows if row.action == KEEP or row in stuck])
    clean_up.unfinished.unlink()
    for parent, _, _ in os.walk(clean_up.place.parent, topdown=False):
        if not any(Path(parent).iterdir()):
            Path(parent).rmdir()
    return clean_up, moved, errors


def _move(source: Path, target: Path) -> None:
    """Rename a file, with the folders that it needs."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():  # which a rename would replace
            raise FileExistsError(None, "something is there already")
        source.rename(target)
    except OSError as error:
        what = f"{source}: can't be moved to {target}: {reason(error)}"
        raise UserError(f"{what}; put it right and run this again, or take the clean-up back with --undo") from error


def _sync(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    if os.name == "posix":  # other systems have no way to
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
