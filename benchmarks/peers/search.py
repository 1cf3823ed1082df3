"""Milliseconds to find the four closest of N random vectors, by one of three ways; or to read them at all."""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import numpy.typing as npt

from benchmarks.harness import seconds_of

BLOCK = 10_000

name, count = sys.argv[1], int(sys.argv[2])


def blocks() -> Iterator[npt.NDArray[np.float32]]:
    """The vectors, of length 1, some at a time: each contestant keeps them once."""
    generator = np.random.default_rng(0)
    for start in range(0, count, BLOCK):
        block = generator.standard_normal((min(BLOCK, count - start), 512), dtype=np.float32)
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


def whole() -> npt.NDArray[np.float32]:
    """All of them, (N, 512)."""
    matrix = np.empty((count, 512), np.float32)
    for number, block in enumerate(blocks()):
        matrix[number * BLOCK :][: len(block)] = block
    return matrix


query = next(blocks())[:1].copy()
find: Callable[[], object]
if name == "FAISS flat":
    import faiss

    faiss.omp_set_num_threads(1)  # it shares out queries, not vectors: more threads only slow a single query down
    index = faiss.IndexFlatL2(512)
    for part in blocks():
        index.add(part)
    find = partial(index.search, query, 4)
elif name == "ours":
    from retrieval.search import nearest

    find = partial(nearest, whole(), query, 4)
elif name == "reading the vectors once":
    import torch

    find = torch.from_numpy(whole()).sum
else:
    matrix = whole()

    def find() -> npt.NDArray[np.int64]:
        """As one would write it."""
        return np.argsort(-(matrix @ query[0]))[:4]


print(json.dumps({"milliseconds": 1000 * seconds_of(find, 21)}))
