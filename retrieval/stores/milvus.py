"""An index in a collection of Milvus (https://milvus.io/docs), which many machines can fill and search."""

import contextlib
import json
import logging
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any
from urllib.parse import parse_qs, quote, unquote_to_bytes, urlsplit

import grpc
import numpy as np
import numpy.typing as npt
from pymilvus import DataType, MilvusClient, MilvusException
from tqdm import tqdm

from datamodules.errors import UserError
from retrieval.search import ROUNDING, Vectors
from retrieval.stores.base import SCHEMA, Hit, MissingIndexError, Record, Store, check_version, migrate

TOKEN = "MILVUS_TOKEN"  # noqa: S105 - the name of the variable
EXACT_UP_TO = 1_000_000  # images: with 512 numbers each 2 GB, which two cores compare in about a second
CONNECT_SECONDS = 5.0  # in which a server must answer at first
SECONDS = 8.0  # in which any later answer must come
BUILD_SECONDS = 7 * 24 * 3600.0  # in which an approximate index must be built
ROWS_AT_ONCE = 1000  # with 2,048 numbers each 8 MB, an eighth of what a message may have
MAX_HITS = 16384  # that Milvus gives for a query (https://milvus.io/docs/limitations.md)
SPARE_HITS = 8  # by which ties are told from what is just behind them
# Malkov and Yashunin 2016, https://arxiv.org/abs/1603.09320; chosen by `evaluate --recall`
HNSW = {"M": 32, "efConstruction": 256}
CANDIDATES = 512

HEADER = "%header"  # the key of a row that no file has, since in file names % is always followed by two digits
FIELDS = tuple(field.name for field in fields(Record))
TEXTS = ("path", "label", "error")  # percent-encoded
IMAGES = 'digest != ""'


class MilvusStore(Store):
    """An index in a collection: a row for each file, with the vector of its content, and one for the header.

    All reads see all that was written before (https://milvus.io/docs/consistency.md, level Strong). Names are kept
    percent-encoded, since they need not be UTF-8.

    Args:
        uri: Address of the server, ``http://HOST:PORT``, or a file of Milvus Lite. The environment variable
            ``MILVUS_TOKEN`` has the token, or ``USER:PASSWORD``, if it asks for one.
        collection: Name of the collection.
        header: Creates an index with this header if there is none; None only opens one.
        dimension: D, the length of the vectors of a new index.
        exact_up_to: So many images are searched exactly; more by HNSW graphs, as soon as ``compact`` sees them.

    Raises:
        MissingIndexError: There is none.
        UserError: The server can't be reached or refuses the token; the collection isn't an index, or is a newer one.
    """

    def __init__(
        self,
        uri: str,
        collection: str,
        header: Mapping[str, str] | None = None,
        dimension: int = 0,
        exact_up_to: int = EXACT_UP_TO,
    ) -> None:
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)  # what it logs, it also raises
        self.location = f"{uri}/{collection}"
        self._collection = collection
        self._exact_up_to = exact_up_to
        with self._translate_errors():
            self._client = MilvusClient(uri, token=os.environ.get(TOKEN, ""), timeout=CONNECT_SECONDS)
        try:
            with self._translate_errors():
                self._open(header, dimension)
        except BaseException:
            self._client.close()
            raise

    def _open(self, header: Mapping[str, str] | None, dimension: int) -> None:
        there = self._client.has_collection(self._collection, timeout=SECONDS)
        if not there and header is not None:
            self._create(dimension)
        elif not there:
            raise MissingIndexError(f"{self.location}: no index there; create one with `python -m retrieval index`")
        fields = self._client.describe_collection(self._collection, timeout=SECONDS)["fields"]
        if {field["name"] for field in fields} != {*FIELDS, "vector"}:
            raise UserError(f"{self.location}: a collection, but not an index of images; name another with --index")
        (self._dimension,) = (field["params"]["dim"] for field in fields if field["name"] == "vector")
        if not self._client.list_indexes(self._collection, "vector", timeout=SECONDS):
            self._build("FLAT")  # a process died between two steps
        self._client.load_collection(self._collection, timeout=BUILD_SECONDS)
        found = self._query(f'path == "{HEADER}"', ["error"])
        if not found and header is not None:
            kept: dict[str, Any] = {"schema": SCHEMA, "header": dict(header)}
            self._keep(kept)
        elif not found:
            raise MissingIndexError(f"{self.location}: no index there; create one with `python -m retrieval index`")
        else:
            kept = json.loads(found[0]["error"])
        check_version(self.location, kept["schema"])
        self.header = kept["header"] if kept["schema"] == SCHEMA else migrate(kept["header"])

    def _keep(self, kept: dict[str, Any]) -> None:
        """Write the row that is no image's."""
        self._upsert([{**_row(Record("", 0, 0, None, None)), "path": HEADER, "error": json.dumps(kept)}])

    def _kept(self) -> dict[str, Any]:
        (row,) = self._query(f'path == "{HEADER}"', ["error"])
        kept: dict[str, Any] = json.loads(row["error"])
        return kept

    def _create(self, dimension: int) -> None:
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        for name in (*TEXTS, "digest"):
            schema.add_field(name, DataType.VARCHAR, max_length=65535, is_primary=name == "path")
        for name in ("size", "mtime_ns", "width", "height"):
            schema.add_field(name, DataType.INT64)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        self._client.create_collection(self._collection, schema=schema, consistency_level="Strong", timeout=SECONDS)

    def _build(self, kind: str) -> None:
        """Make an index for searching of a kind that Milvus knows; it isn't loaded then."""
        indexes = self._client.prepare_index_params()
        indexes.add_index("vector", index_type=kind, metric_type="L2", params=HNSW if kind == "HNSW" else {})
        self._client.create_index(self._collection, indexes, timeout=BUILD_SECONDS)

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise what Milvus found as a ``UserError`` of one line."""
        try:
            yield
        except (MilvusException, grpc.RpcError) as error:
            # A connection that fails is reported without saying why; the call behind it knows.
            call = next((cause for cause in (error, error.__cause__) if isinstance(cause, grpc.RpcError)), None)
            what = " ".join(str(getattr(error, "message", error)).split())
            if call is not None and call.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                what = f"the server refuses {'the' if os.environ.get(TOKEN) else 'access without a'} token in {TOKEN}"
            elif call is not None or re.search("connect|timeout|deadline", what, re.IGNORECASE):
                what = "the server doesn't answer; is it running, and is this its address?"
            elif re.search("not.{0,9}load|index not found", what, re.IGNORECASE):
                what = "the index is being rebuilt for searching: try again later"
            raise UserError(f"{self.location}: {what}") from error

    def _query(self, expression: str, fields: list[str]) -> list[dict[str, Any]]:
        """All rows for which an expression holds (https://milvus.io/docs/boolean.md)."""
        return list(self._rows(expression, fields))

    def _rows(self, expression: str, fields: list[str]) -> Iterator[dict[str, Any]]:
        """The same, one after the other."""
        # The iterator begins with a call of its own, which would wait for a minute.
        self._client.has_collection(self._collection, timeout=SECONDS)
        pages = self._client.query_iterator(
            self._collection,
            batch_size=ROWS_AT_ONCE,
            filter=expression,
            output_fields=fields,
            consistency_level="Strong",
            timeout=SECONDS,
        )
        try:
            while page := pages.next():
                yield from page
        finally:
            pages.close()

    def _ask(self, expression: str, fields: list[str], **options: Any) -> list[dict[str, Any]]:
        """A few rows for which an expression holds, in one answer."""
        rows: list[dict[str, Any]] = self._client.query(
            self._collection,
            filter=expression,
            output_fields=fields,
            consistency_level="Strong",
            timeout=SECONDS,
            **options,
        )
        return rows

    def _count(self) -> int:
        """How many images there are."""
        (row,) = self._ask(IMAGES, ["count(*)"])
        return int(row["count(*)"])

    def _upsert(self, rows: list[dict[str, Any]]) -> None:
        # Each row needs one. The origin would be close to all others, and ruin a graph of neighbours.
        somewhere = np.eye(1, self._dimension, dtype=np.float32)[0]
        for row in rows:
            row.setdefault("vector", somewhere)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            self._client.upsert(self._collection, rows[start : start + ROWS_AT_ONCE], timeout=SECONDS)

    def records(self) -> dict[str, Record]:
        with self._translate_errors():
            records = [_record(row) for row in self._rows(f'path != "{HEADER}"', list(FIELDS))]
        return {record.path: record for record in sorted(records, key=_order)}

    def labels(self) -> list[str]:
        with self._translate_errors():
            found = {row["label"] for row in self._rows(f'{IMAGES} and label != ""', ["label"])}
        return sorted(map(_decoded, found), key=os.fsencode)

    def has_label(self, label: str) -> bool:
        with self._translate_errors():
            return label != "" and bool(self._ask(f'{IMAGES} and label == "{_encoded(label)}"', ["path"], limit=1))

    def revision(self) -> str:
        with self._translate_errors():
            return str(self._kept().get("revision", ""))

    def add(self, records: Sequence[Record], vectors: Mapping[bytes, Vectors]) -> None:
        with self._translate_errors():
            wanted = {record.digest for record in records if record.digest is not None}
            known = {**vectors, **self._fetch(wanted - vectors.keys())}
            if missing := wanted - known.keys():
                changed = next(record.path for record in records if record.digest in missing)
                raise UserError(f"{self.location}: another process has just changed {changed} there: run it again")
            rows = [_row(record) for record in records]
            for row, record in zip(rows, records, strict=True):
                if record.digest is not None:
                    row["vector"] = known[record.digest]
            self._upsert(rows)

    def _fetch(self, digests: Iterable[bytes]) -> dict[bytes, Vectors]:
        """Vectors of contents, as far as they are there."""
        found: dict[bytes, Vectors] = {}
        every = sorted(digest.hex() for digest in digests)
        for start in range(0, len(every), ROWS_AT_ONCE):
            rows = self._query(f"digest in {json.dumps(every[start : start + ROWS_AT_ONCE])}", ["digest", "vector"])
            found |= {bytes.fromhex(row["digest"]): np.array(row["vector"], np.float32) for row in rows}
        return found

    def remove(self, paths: Iterable[str]) -> None:
        keys = [_encoded(path) for path in paths]
        with self._translate_errors():
            for start in range(0, len(keys), ROWS_AT_ONCE):
                self._client.delete(self._collection, ids=keys[start : start + ROWS_AT_ONCE], timeout=SECONDS)

    def compact(self, progress: bool = False) -> None:
        # Exact search up to a number of images, graphs beyond. Nothing can be searched while that changes.
        with self._translate_errors():
            kind = "HNSW" if self._count() > self._exact_up_to else "FLAT"
            if self._client.describe_index(self._collection, "vector", timeout=SECONDS)["index_type"] == kind:
                return
            with tqdm(desc=f"Building {kind}", total=1, unit="index", disable=not progress, delay=1) as bar:
                self._client.flush(self._collection, timeout=BUILD_SECONDS)
                self._client.release_collection(self._collection, timeout=SECONDS)
                self._client.drop_index(self._collection, "vector", timeout=SECONDS)
                self._build(kind)
                self._client.load_collection(self._collection, timeout=BUILD_SECONDS)
                bar.update()

    def search(
        self, queries: Vectors, k: int, without: Sequence[Collection[bytes]], label: str | None = None
    ) -> list[list[Hit]]:
        # Milvus finds the candidates; their distances are then computed from the differences, as ``nearest`` does. It
        # is asked for twice as many where copies or ties leave it open which are the closest.
        if k > MAX_HITS:
            raise UserError(f"{self.location}: k must be at most {MAX_HITS}, got {k}")
        expression = IMAGES if label is None else f'{IMAGES} and label == "{_encoded(label)}"'
        results: list[list[Hit]] = [[] for _ in queries]
        waiting = list(range(len(queries)))
        limit = k + SPARE_HITS
        while waiting:
            limit = min(limit, MAX_HITS)
            with self._translate_errors():
                found = self._client.search(
                    self._collection,
                    data=[queries[number] for number in waiting],
                    anns_field="vector",
                    limit=limit,
                    filter=expression,
                    output_fields=["path", "digest", "label", "vector"],
                    search_params={"metric_type": "L2", "params": {"ef": max(CANDIDATES, limit)}},
                    consistency_level="Strong",
                    timeout=SECONDS,
                )
            undecided = []
            for number, rows in zip(waiting, found, strict=True):
                hits, reach = _closest(queries[number], [row["entity"] for row in rows], without[number])
                results[number] = hits[:k]
                complete = len(rows) < limit or (len(hits) >= k and hits[k - 1].distance < reach - ROUNDING)
                if not complete and limit < MAX_HITS:
                    undecided.append(number)
            waiting, limit = undecided, 2 * limit
        return results

    def sample(self, count: int) -> tuple[list[bytes], Vectors]:
        # Digests are as good as random; with a limit a server would give the first paths, all of one class.
        found: dict[str, Any] = {}
        with self._translate_errors():
            share = 1.5 * count / max(self._count(), 1)
            while len(found) < count:
                bound = f"{int(share * 2**32):08x}" if share < 1 else "g"  # behind all digits
                rows = self._rows(f'{IMAGES} and digest < "{bound}"', ["digest", "vector"])
                found = {row["digest"]: row["vector"] for row in rows}  # of copies, however many, one
                if share >= 1:
                    break
                share *= 2  # there are copies, or few that are small
        chosen = sorted(found)[:count]
        vectors = np.array([found[digest] for digest in chosen], np.float32).reshape(len(chosen), -1 if chosen else 0)
        return [bytes.fromhex(digest) for digest in chosen], vectors

    def match_distance(self) -> float | None:
        with self._translate_errors():
            distance: float | None = self._kept().get("match_distance")
        return distance

    def begin_update(self) -> None:
        with self._translate_errors():
            self._keep({**self._kept(), "updating": True, "revision": secrets.token_hex(16)})

    def is_updating(self) -> bool:
        with self._translate_errors():
            return "updating" in self._kept()

    def keep_match_distance(self, distance: float) -> None:
        with self._translate_errors():
            kept = {**self._kept(), "match_distance": distance, "revision": secrets.token_hex(16)}
            kept.pop("updating", None)
            self._keep(kept)

    def vectors(self) -> tuple[list[Record], Vectors]:
        with self._translate_errors():
            rows = self._query(IMAGES, [*FIELDS, "vector"])
        pairs = sorted(((_record(row), row["vector"]) for row in rows), key=lambda pair: _order(pair[0]))
        matrix = np.array([vector for _, vector in pairs], np.float32).reshape(len(pairs), -1 if pairs else 0)
        return [record for record, _ in pairs], matrix

    def close(self) -> None:
        self._client.close()


def parse_address(address: str) -> tuple[str, str, int]:
    """Take ``http://HOST:PORT/COLLECTION[?exact_up_to=IMAGES]`` apart.

    Returns:
        Address of the server, name of the collection, and how many images are searched exactly.

    Raises:
        UserError: It is not such an address, or there is a password in it.
    """
    parts = urlsplit(address)
    if "@" in parts.netloc:
        raise UserError(
            f"--index: keep the password out of the address and put it into the environment variable {TOKEN}"
        )
    collection = parts.path.strip("/")
    server = re.fullmatch(r"[^:\[\]]+(:\d{1,5})?|\[.+\](:\d{1,5})?", parts.netloc)
    options = parse_qs(parts.query, keep_blank_values=True)
    exact_up_to = options.pop("exact_up_to", [str(EXACT_UP_TO)])[-1]
    if not server or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]{0,254}", collection) or options:
        raise UserError(
            f"{address}: expected http://HOST:PORT/COLLECTION, with letters, digits and _ in the collection's name, "
            "and at most ?exact_up_to=IMAGES after it"
        )
    if not exact_up_to.isdecimal():
        raise UserError(f"{address}: exact_up_to must be a number of images, got {exact_up_to or 'nothing'}")
    return f"{parts.scheme}://{parts.netloc}", collection, int(exact_up_to)


def _closest(query: Vectors, rows: list[dict[str, Any]], without: Collection[bytes]) -> tuple[list[Hit], float]:
    """Rows as hits, the closest first, without some contents; and the distance of the furthest row."""
    if not rows:
        return [], 0.0
    vectors: npt.NDArray[np.float32] = np.array([row["vector"] for row in rows], np.float32)
    distances = np.linalg.norm(vectors - query, axis=1)
    hits = [
        Hit(_decoded(row["path"]), _decoded(row["label"]) or None, distance)
        for row, distance in zip(rows, distances.tolist(), strict=True)
        if bytes.fromhex(row["digest"]) not in without
    ]
    return sorted(hits, key=lambda hit: (hit.distance, os.fsencode(hit.path))), float(distances.max())


def _row(record: Record) -> dict[str, Any]:
    texts = {name: _encoded(getattr(record, name) or "") for name in TEXTS}
    return {**vars(record), **texts, "digest": (record.digest or b"").hex()}


def _record(row: dict[str, Any]) -> Record:
    texts = {name: _decoded(row[name]) or None for name in TEXTS}
    kept = {name: row[name] for name in FIELDS}
    return Record(**{**kept, **texts, "digest": bytes.fromhex(row["digest"]) or None})


def _order(record: Record) -> bytes:
    return os.fsencode(record.path)


def _encoded(text: str) -> str:
    """Text of any file name, in letters that need no escape in Milvus's expressions."""
    return quote(os.fsencode(text))


def _decoded(text: str) -> str:
    return os.fsdecode(unquote_to_bytes(text))
