"""How close an image must be to be a match, and not the closest by chance: drawn from the collection itself."""

import math

import numpy as np

from retrieval.audit import NEIGHBOURS, first_others
from retrieval.stores.base import Store

OWN = 0.95  # share of the collection's own images that find a match among the others
SAMPLE = 500  # images that are asked for
FEWEST = 20  # different images below which nothing can be said
BLOCK = 32  # queries at once


def match_distance(store: Store) -> float:
    """The distance beyond which nothing in a collection is similar to a query.

    An image of the collection, asked with, finds one of the others within it in 95 % of cases. Copies and
    near-duplicates don't count as others, since they say nothing of how far apart different images are.

    Args:
        store: The index.

    Returns:
        In [0, 2]; infinite for a collection of fewer than 20 different images.
    """
    contents, vectors = store.sample(SAMPLE)
    if len(contents) < FEWEST:
        return math.inf
    nearest = []
    for start in range(0, len(contents), BLOCK):
        part = slice(start, start + BLOCK)
        for hits in store.search(vectors[part], NEIGHBOURS, [{content} for content in contents[part]]):
            nearest.append([hit.distance for hit in hits] + [2.0] * (NEIGHBOURS - len(hits)))
    return float(np.quantile(first_others(np.array(nearest, np.float32)), OWN))
