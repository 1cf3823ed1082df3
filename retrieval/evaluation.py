"""How good a search is: does it find images of the query's class?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.errors import UserError
from datamodules.images import find_images
from retrieval.encoders.base import Encoder
from retrieval.index import ImageIndex
from retrieval.query import Example, read_example
from retrieval.search import ROUNDING, Vectors, nearest
from retrieval.stores.base import Hit, Record, Store

CUTOFFS = (1, 4, 10)
SHOWN = 4  # images that a ranking keeps, to be drawn
BLOCK = 256  # queries at once: bounds the memory
SAMPLE = 1000  # queries by which an approximate search is judged


@dataclass(frozen=True)
class Ranking:
    """How a query's images of its own class are ranked among all others.

    Attributes:
        name: The query's path.
        label: Its class.
        precision: By cutoff k, the share of the first k that are of its class, in [0, 1].
        average_precision: Mean of the precisions at each image of its class, in [0, 1].
        closest: The first four of all.
    """

    name: str
    label: str
    precision: dict[int, float]
    average_precision: float
    closest: list[Hit]


def rank_queries(
    records: list[Record], matrix: Vectors, queries: list[Record] | None = None, vectors: Vectors | None = None
) -> list[Ranking]:
    """Rank all labelled images for each query; the query and copies of it are left out.

    Args:
        records: N images, of which those without a label are left out.
        matrix: (N, D), float32, their vectors.
        queries: Q labelled queries; None takes each image of a class with two or more different ones (leave-one-out).
        vectors: (Q, D), float32, their vectors.

    Returns:
        A ranking for each query, in order.

    Raises:
        UserError: There are fewer than two classes, or no class of which two different images are there.
    """
    chosen = [row for row, record in enumerate(records) if record.label is not None]
    labels = np.array([records[row].label or "" for row in chosen])
    if len(set(labels.tolist())) < 2:
        raise UserError("searching can be evaluated only on images in two or more class folders")
    matrix = matrix[chosen]
    names = {content: number for number, content in enumerate(sorted({records[row].digest or b"" for row in chosen}))}
    contents = np.array([names[records[row].digest or b""] for row in chosen])
    if queries is None or vectors is None:
        queries, vectors = [records[row] for row in chosen], matrix
    rankings = []
    for start in range(0, len(queries), BLOCK):
        block = vectors[start : start + BLOCK]
        for query, vector, row in zip(queries[start : start + BLOCK], block, block @ matrix.T, strict=True):
            others = np.flatnonzero(contents != names.get(query.digest or b"", -1))
            order = others[np.argsort(-row[others], kind="stable")]
            relevant = labels[order] == query.label
            if relevant.any():
                distances = np.linalg.norm(matrix[order[:SHOWN]] - vector, axis=1).tolist()
                found = [records[chosen[place]] for place in order[:SHOWN]]
                hits = [Hit(one.path, one.label, distance) for one, distance in zip(found, distances, strict=True)]
                rankings.append(_ranking(query, relevant, hits))
    if not rankings:
        raise UserError("searching can be evaluated only where a class has two different images")
    return rankings


def _ranking(query: Record, relevant: npt.NDArray[np.bool_], closest: list[Hit]) -> Ranking:
    places = np.flatnonzero(relevant) + 1
    return Ranking(
        query.path,
        query.label or "",
        {k: float(relevant[:k].mean()) for k in CUTOFFS},
        float((np.arange(1, len(places) + 1) / places).mean()),
        closest,
    )


def summarise(rankings: list[Ranking]) -> dict[str, dict[str, float]]:
    """Number of queries, mean precisions and mean average precision: by class, and of ``all`` queries."""
    groups: dict[str, list[Ranking]] = {}
    for ranking in rankings:
        groups.setdefault(ranking.label, []).append(ranking)
    table = {}
    for name, group in [*groups.items(), ("all", rankings)]:
        table[name] = {
            "queries": len(group),
            **{f"precision@{k}": float(np.mean([ranking.precision[k] for ranking in group])) for k in CUTOFFS},
            "mAP": float(np.mean([ranking.average_precision for ranking in group])),
        }
    return table


def recall(store: Store, matrix: Vectors) -> dict[str, float]:
    """How much of the exact answer an index's own search gives, which on Milvus may be approximate.

    Args:
        store: The index.
        matrix: (N, D), float32, the vectors of all its images.

    Returns:
        The number of queries, images of the index spread evenly over it; and by cutoff k the share of the k images
        closest to each that were found, in [0, 1]. An image as close as the one in place k counts as well as that.
    """
    queries = matrix[np.linspace(0, len(matrix) - 1, min(SAMPLE, len(matrix)), dtype=np.int64)]
    shares: dict[int, list[float]] = {k: [] for k in CUTOFFS}
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        found = store.search(block, max(CUTOFFS), [()] * len(block))
        for (_, distances), hits in zip(nearest(matrix, block, max(CUTOFFS)), found, strict=True):
            for k, share in shares.items():
                exact = distances[:k]
                close = sum(hit.distance <= exact[-1] + ROUNDING for hit in hits[:k])
                share.append(close / len(exact))
    return {"queries": len(queries), **{f"recall@{k}": float(np.mean(share)) for k, share in shares.items()}}


def refusals(index: ImageIndex, foreign: Sequence[Path]) -> dict[str, float]:
    """How well the distance of a match tells a collection's own images from others.

    Args:
        index: The collection.
        foreign: Images to which nothing in it is similar.

    Returns:
        That distance; the number of images of each kind, and the shares of them that find nothing within it, in
        [0, 1]: of the collection's own among the others without their copies.

    Raises:
        UserError: An image can't be read, or the collection is too small to tell.
    """
    reach = index.match_distance
    records, matrix = index.store.vectors()
    alone = 0
    for start in range(0, len(records), BLOCK):
        part = slice(start, start + BLOCK)
        without = [{record.digest or b""} for record in records[part]]
        alone += sum(not hits or hits[0].distance > reach for hits in index.store.search(matrix[part], 1, without))
    refused = sum(not matches for matches in index.search_many(foreign, 1, max_distance=reach))
    return {
        "max_distance": reach,
        "own": len(records),
        "own_refused": alone / len(records),
        "foreign": len(foreign),
        "foreign_refused": refused / len(foreign),
    }


def read_queries(folder: Path, classes: set[str], encoder: Encoder) -> tuple[list[Record], Vectors]:
    """Read queries that aren't in the collection.

    Args:
        folder: Images in class folders, or named as their class, such as ``buses_354.jpg``.
        classes: Names of the classes that there are.
        encoder: The encoder that made the collection's vectors.

    Returns:
        Q labelled records, and (Q, D), float32, their vectors.

    Raises:
        UserError: There are none, one can't be read, or its class isn't known.
    """
    records, vectors = [], []
    paths = find_images(folder) if folder.is_dir() else []
    if not paths:
        raise UserError(f"{folder}: not a folder of images")
    for path in paths:
        name = path.relative_to(folder).as_posix()
        called = name.partition("/")[0] if "/" in name else path.stem.rpartition("_")[0]
        if called not in classes:
            raise UserError(f"{path}: unknown class; put it into a folder of its class, or name it CLASS_….jpg")
        pixels, content = read_example(Example(path), encoder)
        records.append(Record(name, 0, 0, content, called))
        vectors.append(encoder.encode([pixels])[0])
    return records, np.stack(vectors)
