"""Exact nearest neighbours: one matrix product."""

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

SCORES_AT_ONCE = 1 << 24  # 64 MiB of float32: bounds the memory of many queries at once
ROUNDING = 1e-5  # above what rounding moves the dot product of two float32 vectors of length 1


def nearest(matrix: Vectors, queries: Vectors, k: int) -> list[tuple[npt.NDArray[np.int64], Vectors]]:
    """The rows of a matrix that are closest to each query, the closest first; ties in the order of the rows.

    The product finds the candidates; their distances are then computed from the differences, which unlike
    sqrt(2 - 2 · product) are right for near-duplicates, and 0 for copies.

    Args:
        matrix: (N, D), float32, rows of length 1; may be mapped from a file.
        queries: (Q, D), float32, rows of length 1.
        k: How many; fewer come back if there are fewer rows.

    Returns:
        For each query the rows (k,), int64, and their Euclidean distances (k,), float32, in [0, 2].
    """
    k = min(k, len(matrix))
    if k < 1:
        return [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    results = []
    at_once = max(SCORES_AT_ONCE // len(matrix), 1)
    for start in range(0, len(queries), at_once):
        block = queries[start : start + at_once]
        # A product with a single vector runs at the speed of memory, which a general product doesn't reach.
        products = (matrix @ block[0])[None] if len(block) == 1 else block @ matrix.T
        for query, row in zip(block, products, strict=True):
            results.append(_closest(matrix, query, row, k))
    return results


def damaged_rows(matrix: Vectors) -> npt.NDArray[np.int64]:
    """The rows of a matrix (N, D) that aren't finite or not of length 1, as all vectors were when they were written."""
    at_once = max(SCORES_AT_ONCE // max(matrix.shape[-1], 1), 1)
    found = []
    for start in range(0, len(matrix), at_once):
        block = matrix[start : start + at_once]
        with np.errstate(over="ignore", invalid="ignore"):
            whole = np.abs(np.einsum("nd,nd->n", block, block) - 1) < ROUNDING
        found.append(start + np.flatnonzero(~whole))
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _closest(matrix: Vectors, query: Vectors, products: Vectors, k: int) -> tuple[npt.NDArray[np.int64], Vectors]:
    worst = np.partition(products, len(products) - k)[len(products) - k]
    candidates = np.flatnonzero(products >= worst - ROUNDING)
    distances: Vectors = np.linalg.norm(matrix[candidates] - query, axis=1)
    order = np.argsort(distances, kind="stable")[:k]
    return candidates[order], distances[order]
