"""What looks wrong in a collection: duplicates, leaks between the sides of a split, doubtful labels."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from retrieval.search import Vectors, nearest
from retrieval.stores.base import Record

Kind = Literal["duplicate", "near-duplicate", "leak", "label"]

NEIGHBOURS = 10  # that vote on an image's label
MAJORITY = 0.8  # share of the votes for another label from which on an image's own is doubted
OUTLIER = 3.5  # robust standard deviations (Iglewicz & Hoaglin 1993, "How to Detect and Handle Outliers")
GAP = 2.1  # times as far as a copy is the first image that is none
BLOCK = 256  # images between two steps of the progress bar


@dataclass(frozen=True)
class Finding:
    """Something that a person should look at.

    Attributes:
        kind: ``duplicate`` (byte-identical files), ``near-duplicate``, ``leak`` (either of the two, one image to train
            on and the other to validate on), or ``label`` (the neighbours agree on another label).
        path: The image, relative to the folder.
        other: The image that it resembles; of a doubtful label, the closest one that has the neighbours' label.
        distance: Of their vectors, in [0, 2].
        label: The image's label, if it has one.
        other_label: The other image's label, if it has one.
    """

    kind: Kind
    path: str
    other: str
    distance: float
    label: str | None
    other_label: str | None


def audit(
    records: list[Record],
    matrix: Vectors,
    subsets: Mapping[str, str] | None = None,
    threshold: float | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> tuple[list[Finding], float]:
    """Look for duplicates, near-duplicates, leaks and doubtful labels.

    Args:
        records: N images, by path.
        matrix: (N, D), float32, their vectors.
        subsets: ``train`` or ``val`` by path, as in a ``split.csv``.
        threshold: Images that are closer than this are near-duplicates; None draws it from the data, and wants a gap
            between an image's near-duplicates and all others besides: pages of text are close to each other, too.
        advance: Called with the number of images that have just been compared.

    Returns:
        The findings, by kind and then by distance, and the threshold.
    """
    contents: dict[bytes, list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        contents[record.digest or b""].append(row)
    for copies in contents.values():  # the first stands for all: one that is on a side, if any is
        copies.sort(key=lambda row: records[row].path not in (subsets or {}))
    distinct = np.array([rows[0] for rows in contents.values()], np.int64)
    rows, distances = _neighbours(matrix[distinct], advance)
    rows = distinct[rows]
    reach = np.full(len(distinct), np.inf)
    if threshold is None:
        reach = first_others(distances)
        threshold = near_duplicate_threshold(reach) if distances.size else 0.0
    labels = [record.label for record in records]

    def finding(kind: Kind, row: int, other: int, distance: float) -> Finding:
        return Finding(kind, records[row].path, records[other].path, distance, labels[row], labels[other])

    def alike(row: int, other: int, distance: float, kind: Kind) -> Finding:
        sides = {(subsets or {}).get(records[place].path) for place in (row, other)}
        return finding("leak" if sides == {"train", "val"} else kind, row, other, distance)

    findings = [alike(first, copy, 0.0, "duplicate") for first, *copies in contents.values() for copy in copies]
    seen = set()
    for row, others, apart, near in zip(*(part.tolist() for part in (distinct, rows, distances, reach)), strict=True):
        for other, distance in zip(others, apart, strict=True):
            pair = min(row, other), max(row, other)
            if distance < min(threshold, near) and pair not in seen:
                seen.add(pair)
                findings.append(alike(*pair, distance, "near-duplicate"))
        if labels[row] is None or len(others) < NEIGHBOURS // 2:
            continue
        winner, votes = Counter(labels[other] for other in others).most_common(1)[0]
        if winner is not None and winner != labels[row] and votes >= MAJORITY * len(others):
            closest = next(place for place, other in enumerate(others) if labels[other] == winner)
            findings.append(finding("label", row, others[closest], apart[closest]))
    order = {"leak": 0, "duplicate": 1, "near-duplicate": 2, "label": 3}
    return sorted(findings, key=lambda found: (order[found.kind], found.distance, found.path)), threshold


def first_others(distances: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """How far the closest image is that is no copy: the first one behind the widest gap, where there is a gap.

    Args:
        distances: (N, k), float32: of each image from its neighbours, in order.

    Returns:
        (N,), float32; that of the nearest neighbour where no neighbour is ``GAP`` times as far as the one before.
    """
    if distances.shape[1] < 2:
        return distances[:, 0] if distances.size else np.zeros(len(distances), np.float32)
    steps = distances[:, 1:] / np.maximum(distances[:, :-1], 1e-6)
    widest, rows = steps.argmax(axis=1), np.arange(len(distances))
    return np.where(steps[rows, widest] > GAP, distances[rows, widest + 1], distances[:, 0])


def near_duplicate_threshold(distances: npt.NDArray[np.float32]) -> float:
    """Where a nearest neighbour is too close to be another picture.

    Distances to the nearest neighbour are roughly log-normal, and those of near-duplicates are outliers at the low end:
    more than 3.5 robust standard deviations (from the median absolute deviation) below the median.

    Args:
        distances: (N,), float32: of each image from its nearest neighbour that is not a copy of it.
    """
    logs = np.log(np.maximum(distances, 1e-6))
    middle = np.median(logs)
    deviation = 1.4826 * np.median(np.abs(logs - middle))
    return float(np.exp(middle - OUTLIER * max(deviation, 0.1)))


def _neighbours(
    matrix: Vectors, advance: Callable[[int], object]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Rows and distances, (N, k) each, of the k closest other images of each image."""
    count = len(matrix)
    k = max(min(NEIGHBOURS, count - 1), 0)
    rows = np.empty((count, k), np.int64)
    distances = np.empty((count, k), np.float32)
    for start in range(0, count, BLOCK):
        block = matrix[start : start + BLOCK]
        for row, (found, apart) in enumerate(nearest(matrix, block, k + 1), start):
            others = found != row
            rows[row], distances[row] = found[others][:k], apart[others][:k]
        advance(len(block))
    return rows, distances
