"""Split a collection into training and validation images, and write down which is which."""

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.errors import UserError, reason
from datamodules.writing import write_csv

TRAIN, VAL = "train", "val"
DIGEST_BYTES = 16


def digest(data: bytes) -> bytes:
    """16 bytes that stand for an image: equal for copies, different for anything else (BLAKE2b)."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def pixel_digests(pixels: Iterable[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """N arrays of uint8 -> (N, 16), uint8: the digest of each image's pixels, where there are no files to compare."""
    return np.frombuffer(b"".join(digest(image.tobytes()) for image in pixels), np.uint8).reshape(-1, DIGEST_BYTES)


def split(
    labels: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8], val_fraction: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Choose the validation images: a fraction of every class, copies always on one side.

    Each distinct image has a place in the queue for validation that is a hash of the seed and its content, so
    the split does not depend on file names, order or the version of any library, and an image that is added
    later hardly moves the others. The classes' shares are rounded by largest remainder, so that their sum is
    the whole number of ``val_fraction * N``.

    Args:
        labels: (N,), int64, the class of each image.
        digests: (N, D), uint8, equal for byte-identical images.
        val_fraction: Share of the images that go to validation, in (0, 1).
        seed: Another seed gives another split.

    Returns:
        (N,), bool: True for a validation image; none of a class that has one distinct image.
    """
    queues = _queues(labels, digests, seed)
    in_validation = np.zeros(len(labels), np.bool_)
    for label, target in _shares(labels, val_fraction).items():
        queue = queues[label]
        chosen = 0
        for rows in queue[: len(queue) - 1]:  # at least one image is left to train on
            if chosen >= max(target, 1):
                break
            in_validation[rows] = True
            chosen += len(rows)
    return in_validation


def split_into_folds(
    labels: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8], folds: int, seed: int
) -> npt.NDArray[np.int64]:
    """Choose the fold in which each image is validated: every class in equal parts, copies always in one fold.

    The images of a class are taken in the order of ``split``'s queue; each goes to the fold with the fewest of its
    class, among those to the one with the fewest of all.

    Args:
        labels: (N,), int64, the class of each image.
        digests: (N, D), uint8, equal for byte-identical images.
        folds: How many there are.
        seed: Another seed gives other folds.

    Returns:
        (N,), int64: 1 to ``folds``.
    """
    fold_of = np.zeros(len(labels), np.int64)
    of_all = [0] * folds
    for _, queue in sorted(_queues(labels, digests, seed).items()):
        of_class = [0] * folds
        for rows in queue:
            fold = min(range(folds), key=lambda fold: (of_class[fold], of_all[fold]))
            fold_of[rows] = fold + 1
            of_class[fold] += len(rows)
            of_all[fold] += len(rows)
    return fold_of


def _queues(labels: npt.NDArray[np.int64], digests: npt.NDArray[np.uint8], seed: int) -> dict[int, list[list[int]]]:
    """For each class the rows of its distinct images, copies together, in the order of a hash of seed and content."""
    copies: dict[bytes, list[int]] = defaultdict(list)
    for row, image in enumerate(digests):
        copies[image.tobytes()].append(row)
    queues: dict[int, list[tuple[bytes, list[int]]]] = defaultdict(list)
    for image, rows in copies.items():
        place = hashlib.blake2b(image, digest_size=DIGEST_BYTES, salt=seed.to_bytes(16, "little", signed=True))
        queues[int(labels[rows[0]])].append((place.digest(), rows))
    return {label: [rows for _, rows in sorted(queue)] for label, queue in queues.items()}


def _shares(labels: npt.NDArray[np.int64], fraction: float) -> dict[int, int]:
    """Divide the whole number of ``fraction * N`` among the classes, in proportion, by largest remainder."""
    names, counts = np.unique(labels, return_counts=True)
    exact = counts * fraction
    shares = np.floor(exact).astype(np.int64)
    total = int(round(fraction * len(labels), 9))  # 0.35 * 180 is 62.99999999999999
    short = total - int(shares.sum())
    shares[np.argsort(shares - exact, kind="stable")[:short]] += 1
    return dict(zip(names.tolist(), shares.tolist(), strict=True))


def write_split(path: Path, names: list[str], labels: list[str], in_validation: npt.NDArray[np.bool_]) -> None:
    """Write the split as CSV with the columns file, label, subset (``train`` or ``val``)."""
    subsets = (VAL if val else TRAIN for val in in_validation.tolist())
    write_csv(path, [("file", "label", "subset"), *zip(names, labels, subsets, strict=True)])


def read_rows(path: Path) -> dict[str, tuple[str, str]]:
    """Read a split file: label and subset by file.

    Raises:
        UserError: The file is missing or is not a split file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            if not {"file", "label", "subset"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: not a split file, which has the columns file, label, subset")
            return {row["file"]: (row["label"], row["subset"]) for row in reader}
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from error
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error})") from error


def read_split(path: Path, names: list[str], labels: list[str]) -> npt.NDArray[np.bool_]:
    """Read a split that ``write_split`` wrote, for the same images in any order.

    Returns:
        (N,), bool: True for a validation image, in the order of ``names``.

    Raises:
        UserError: The file is missing or is not a split file, or speaks of other images or labels than these.
    """
    subsets = read_rows(path)
    in_validation = np.zeros(len(names), np.bool_)
    for row, (name, label) in enumerate(zip(names, labels, strict=True)):
        if name not in subsets:
            raise UserError(f"{path}: says nothing of {name}; it was written for other images")
        listed, subset = subsets[name]
        if listed != label:
            raise UserError(f"{path}: calls {name} a {listed}, but it lies in {label}")
        if subset not in (TRAIN, VAL):
            raise UserError(f"{path}: the subset of {name} is {subset!r}, expected {TRAIN} or {VAL}")
        in_validation[row] = subset == VAL
    return in_validation
