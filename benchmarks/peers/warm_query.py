"""Ours: seconds of a query in a process that has the index and the network loaded."""

import json
import sys
from pathlib import Path

from benchmarks.harness import seconds_of
from retrieval.encoders.registry import rebuild_encoder
from retrieval.index import ImageIndex
from retrieval.stores.location import find_location

folder, query = sys.argv[1:]
with find_location(Path(folder), None).open() as store:
    encoder = rebuild_encoder(store.header)
with ImageIndex.open(folder, encoder) as index:
    print(json.dumps({"seconds": seconds_of(lambda: index.search(query, k=4), 15)}))
