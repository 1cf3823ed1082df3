"""Milliseconds to find the four closest of N random vectors, by one of three ways; or to read them at all."""

import json
import sys

import numpy as np

from benchmarks.harness import seconds_of

name, count = sys.argv[1], int(sys.argv[2])
generator = np.random.default_rng(0)
matrix = generator.standard_normal((count, 512), dtype=np.float32)
for start in range(0, count, 10_000):
    block = matrix[start : start + 10_000]
    block /= np.linalg.norm(block, axis=1, keepdims=True)
query = matrix[:1].copy()
if name == "ours":
    from retrieval.search import nearest

    milliseconds = 1000 * seconds_of(lambda: nearest(matrix, query, 4), 21)
elif name == "FAISS flat":
    import faiss

    index = faiss.IndexFlatL2(512)
    index.add(matrix)
    milliseconds = 1000 * seconds_of(lambda: index.search(query, 4), 21)
elif name == "reading the vectors once":
    import torch

    tensor = torch.from_numpy(matrix)
    milliseconds = 1000 * seconds_of(tensor.sum, 21)
else:
    milliseconds = 1000 * seconds_of(lambda: np.argsort(-(matrix @ query[0]))[:4], 21)
print(json.dumps({"milliseconds": milliseconds}))
