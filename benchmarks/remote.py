"""An index on a Milvus server of this machine, against the index in a file: same vectors, same queries."""

import os
import tempfile
import time
import tracemalloc
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Measurement, Options, has, say
from retrieval.index import ImageIndex
from retrieval.search import nearest
from retrieval.stores.base import Record, Store
from retrieval.stores.location import Location, parse_location
from retrieval.update import Update

IMAGES, LENGTH, QUERIES = 50_000, 512, 1_000
OWN = 32  # directions in which most of the vectors differ; like features of images, they fill only a part of space
K = 4
BATCH = 256
HEADER = {"encoder": "none", "weights": "none", "layer": "none", "preprocessing": "none", "built": "none"}


def run(options: Options) -> list[Measurement]:
    """Writing, searching one by one and in blocks, and how much of the exact answer is found."""
    if not has("milvus", "server") or not has("pymilvus", "server"):
        return []
    from tests.milvus_server import running_server

    count = 500 if options.smoke else IMAGES
    queries = 20 if options.smoke else QUERIES
    vectors = _vectors(count + queries)
    vectors, asked = vectors[:count], vectors[count:]
    exact = [{f"{row:08}.png" for row in rows.tolist()} for rows, _ in nearest(vectors, asked, K)]
    writing = Measurement(f"writing {count} × {LENGTH} in batches of {BATCH}", "images/s")
    single = Measurement(f"one query over {count}", "s")
    blocks = Measurement("queries in blocks of 100", "queries/s")
    found = Measurement(f"recall@{K} of {queries} queries", "")
    building = Measurement("building the graphs", "s")
    updating = Measurement(f"an update of {count} images, none of which has changed", "s")
    held = Measurement(f"memory of an update of {count} images", "MB")
    measurements = [writing, single, blocks, found, building, updating, held]
    with tempfile.TemporaryDirectory() as scratch, running_server(Path(scratch) / "milvus") as server:
        os.environ["MILVUS_TOKEN"] = server.token
        folder = write_files(Path(scratch) / "images", count)
        file, address = parse_location(Path(scratch) / "index.sqlite"), f"{server.uri}/images?exact_up_to="
        with file.open(HEADER) as store:
            writing.values["file"] = [fill(store, vectors)]
            for measurement, value in zip((updating, held), update(folder, file), strict=True):
                measurement.values["file"] = [value]
            _search(store, "file", asked, exact, measurements)
        with parse_location(f"{address}{count}").open(HEADER, LENGTH) as store:
            writing.values["Milvus"] = [fill(store, vectors)]
            store.compact()
            for measurement, value in zip(
                (updating, held), update(folder, parse_location(f"{address}{count}")), strict=True
            ):
                measurement.values["Milvus"] = [value]
            _search(store, "Milvus, exact", asked, exact, measurements)
        with parse_location(f"{address}{count - 1}").open() as store:
            start = time.perf_counter()
            store.compact()
            building.values["Milvus, HNSW"] = [time.perf_counter() - start]
            _search(store, "Milvus, HNSW", asked, exact, measurements)
    return measurements


def _vectors(count: int) -> npt.NDArray[np.float32]:
    generator = np.random.default_rng(0)
    basis = generator.standard_normal((OWN, LENGTH), np.float32) / OWN**0.5
    noise = 0.3 * generator.standard_normal((count, LENGTH), np.float32)
    vectors: npt.NDArray[np.float32] = generator.standard_normal((count, OWN), np.float32) @ basis + noise
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fill(store: Store, vectors: npt.NDArray[np.float32]) -> float:
    """Write all; images a second."""
    start = time.perf_counter()
    for first in range(0, len(vectors), BATCH):
        rows = range(first, min(first + BATCH, len(vectors)))
        contents = {row: row.to_bytes(16, "big") for row in rows}
        store.add(
            [Record(f"{row:08}.png", 1, 1, contents[row], None, 1, 1) for row in rows],
            {contents[row]: vectors[row] for row in rows},
        )
    seconds = time.perf_counter() - start
    store.keep_match_distance(1.0)  # as a complete index has one
    return len(vectors) / seconds


def write_files(folder: Path, count: int) -> Path:
    """The files whose records ``fill`` writes, none of which an update has to read."""
    folder.mkdir()
    for row in range(count):
        path = folder / f"{row:08}.png"
        path.write_bytes(b"x")
        os.utime(path, ns=(1, 1))
    return folder


def update(folder: Path, location: Location) -> tuple[float, float]:
    """An update for which nothing has changed: seconds, and MB that it holds where it holds most."""
    from tests.small_encoder import SmallEncoder

    encoder = SmallEncoder()
    encoder.identity = {key: value for key, value in HEADER.items() if key != "built"}
    with ImageIndex(folder, encoder, location) as index:
        start = time.perf_counter()
        done = index.update()
        seconds = time.perf_counter() - start
        tracemalloc.start()
        index.update()
        megabytes = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
    if done != Update(unchanged=done.unchanged):
        raise RuntimeError(f"something has changed: {done}")
    return seconds, megabytes


def _search(
    store: Store,
    name: str,
    asked: npt.NDArray[np.float32],
    exact: list[set[str]],
    measurements: list[Measurement],
) -> None:
    single, blocks, found = measurements[1:4]
    store.search(asked[:1], K, [()])
    seconds = []
    for query in asked[:20]:
        start = time.perf_counter()
        store.search(query[None], K, [()])
        seconds.append(time.perf_counter() - start)
    single.values[name] = [median(seconds)]
    hits = []
    start = time.perf_counter()
    for first in range(0, len(asked), 100):
        block = asked[first : first + 100]
        hits += store.search(block, K, [()] * len(block))
    blocks.values[name] = [len(asked) / (time.perf_counter() - start)]
    same = [len({hit.path for hit in near} & truth) / K for near, truth in zip(hits, exact, strict=True)]
    found.values[name] = [float(np.mean(same))]
    say(f"{name}: recall@{K} {np.mean(same):.4f}")
