"""An index in one SQLite file."""

import contextlib
import glob
import os
import secrets
import sqlite3
import tempfile
import threading
import zlib
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from datamodules.errors import UserError
from datamodules.tagged_array import read_tagged, write_tagged
from datamodules.writing import atomic_write
from retrieval.search import Vectors, damaged_rows, nearest
from retrieval.stores.base import SCHEMA, Hit, MissingIndexError, Record, Store, check_version, migrate

STATE = ("revision", "match_distance", "updating")  # what lies beside the header's own entries
APPLICATION = 0x44446F6F  # "DDoo": what tells our files from other SQLite files
WAIT_SECONDS = 60.0  # for another process that is writing; a batch takes milliseconds
ROWS_AT_ONCE = 1000  # with 2,048 numbers each 8 MB
HALF_ROUNDING = 1e-3  # above what rounding to float16, whose numbers have 11 bits, moves the length of a vector

TABLES = """
CREATE TABLE header (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE contents (digest BLOB PRIMARY KEY, width INT NOT NULL, height INT NOT NULL, vector BLOB NOT NULL) STRICT;
CREATE TABLE images (
    id INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, size INT NOT NULL, mtime_ns INT NOT NULL,
    digest BLOB REFERENCES contents, label TEXT, error TEXT
) STRICT;
CREATE INDEX images_by_digest ON images (digest);
"""


class SQLiteStore(Store):
    """An index in one SQLite file, and the matrix of its vectors in a file beside it that is derived from it.

    Readers work while a writer writes; writers wait for each other. What a method has written survives the death of
    the process. (https://sqlite.org/wal.html)

    Args:
        path: The file.
        header: Creates an index with this header if there is none; None only opens one.

    Raises:
        MissingIndexError: There is none.
        UserError: It is not an index, is damaged or of a newer version, or can't be written.
    """

    keeps_replaced = True

    def __init__(self, path: Path, header: Mapping[str, str] | None = None) -> None:
        self.path = path
        self.location = str(path)
        self._turn = threading.RLock()  # threads share the connection, a transaction is one thread's
        self._matrix: tuple[str, npt.NDArray[np.int64], Vectors] | None = None
        self._own = False  # whether its file is this process's alone, made while the index was being updated
        with self._translate_errors():
            if not path.exists():
                if header is None:
                    raise MissingIndexError(f"{path}: no index there; create one with `python -m retrieval index`")
                _create(path, header)
            self._connection, self._immutable, self._taken_as = self._connect()
            try:
                self._open()
            except BaseException:
                self._connection.close()
                raise

    def _connect(self) -> tuple[sqlite3.Connection, bool, tuple[int, ...]]:
        """A connection, whether it assumes that the file never changes, and the state of the file.

        It assumes so where it may not write, unless the owner has a write-ahead log open: SQLite can't create one just
        to read, or leaves one that the owner can't use (https://sqlite.org/wal.html).
        """

        def connect(mode: str) -> sqlite3.Connection:
            uri = f"file:{quote(os.fsencode(self.path.absolute()))}?mode={mode}"
            connection = sqlite3.connect(
                uri, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False, uri=True
            )
            connection.text_factory = os.fsdecode  # file names need not be UTF-8
            return connection

        if os.access(self.path.parent, os.W_OK) and os.access(self.path, os.W_OK):
            file = self._state(immutable=False)  # before it is opened: a later one must not be taken for it
            return connect("rw"), False, file
        state, file = self._state(immutable=True), self._state(immutable=False)
        if not state[-1]:
            return connect("ro&immutable=1"), True, state
        connection = connect("ro")
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema")
        except sqlite3.OperationalError:  # the log was left behind
            connection.close()
            return connect("ro&immutable=1"), True, state
        return connection, False, file

    def _state(self, immutable: bool) -> tuple[int, ...]:
        """What differs once another file is in its place; or, if that is asked, has been changed or is about to be."""
        try:
            status, log = self.path.stat(), self.path.with_name(f"{self.path.name}-wal")
        except FileNotFoundError as error:
            raise MissingIndexError(f"{self.path}: the index has been removed") from error
        file = status.st_dev, status.st_ino
        if immutable:
            return *file, status.st_size, status.st_mtime_ns, log.exists()
        return file if os.name == "posix" else (0,)  # elsewhere a file that is open stays where it is

    def _open(self) -> None:
        run = self._connection.execute
        run("PRAGMA synchronous = FULL")  # also a power cut loses nothing that was acknowledged
        application, version = run("PRAGMA application_id").fetchone()[0], run("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION:
            raise UserError(f"{self.path}: a database, but not an index of images; name another file with --index")
        check_version(self.location, version)
        self.header = dict(run("SELECT key, value FROM header WHERE key NOT IN (?, ?, ?)", STATE).fetchall())
        if version < SCHEMA:
            self.header = migrate(self.header)
            if not self._immutable:
                self._write_migrated()

    def _write_migrated(self) -> None:
        """Migrate the file to this schema, once; from then on, older versions refuse it as newer."""
        with self._turn, self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("DELETE FROM header WHERE key NOT IN (?, ?, ?)", STATE)
            self._connection.executemany("INSERT INTO header VALUES (?, ?)", self.header.items())
            self._connection.execute(f"PRAGMA user_version = {SCHEMA}")

    @contextlib.contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Raise what SQLite found as a ``UserError`` of one line."""
        try:
            yield
        except sqlite3.Error as error:
            match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF:  # the primary one of an extended code
                case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                    advice = "damaged, or not an index: delete it and index again, or name another file with --index"
                case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN:
                    advice = "can't be written there: name a file in another folder with --index"
                case sqlite3.SQLITE_FULL | sqlite3.SQLITE_IOERR:
                    advice = f"can't be written ({error}): make room, or name a file on another disk with --index"
                case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                    advice = f"another process has been writing for {WAIT_SECONDS:.0f} s: try again later"
                case _:
                    raise
            raise UserError(f"{self.path}: {advice}") from error

    @contextlib.contextmanager
    def _transaction(self, kind: str = "DEFERRED") -> Iterator[None]:
        with self._translate_errors(), self._turn:
            if self._taken_as != self._state(self._immutable):
                before, (self._connection, self._immutable, self._taken_as) = self._connection, self._connect()
                before.close()
                header = self.header
                self._open()
                if self.header != header:
                    self.header, self._taken_as = header, ()  # so that the next one is told as well
                    raise UserError(f"{self.path}: another encoder has created the index anew: start again")
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction that writes, and gives the index a new revision, so that readers notice."""
        with self._transaction("IMMEDIATE"):
            yield
            self._connection.execute("UPDATE header SET value = hex(randomblob(16)) WHERE key = 'revision'")

    def records(self) -> dict[str, Record]:
        with self._transaction():
            return {record.path: record for record in self._records()}

    def labels(self) -> list[str]:
        with self._transaction():
            rows = self._connection.execute(
                "SELECT DISTINCT label FROM images WHERE label IS NOT NULL AND digest IS NOT NULL ORDER BY label"
            )
            return [label for (label,) in rows]

    def has_label(self, label: str) -> bool:
        with self._transaction():
            row = self._connection.execute(
                "SELECT 1 FROM images WHERE label = CAST(? AS TEXT) AND digest IS NOT NULL LIMIT 1", (_bytes(label),)
            )
            return row.fetchone() is not None

    def revision(self) -> str:
        with self._transaction():
            return self._revision()

    def _revision(self) -> str:
        (revision,) = self._connection.execute("SELECT value FROM header WHERE key = 'revision'").fetchone()
        return str(revision)

    def _records(self) -> Iterator[Record]:
        rows = self._connection.execute(
            "SELECT path, size, mtime_ns, digest, label, ifnull(width, 0), ifnull(height, 0), error "
            "FROM images LEFT JOIN contents USING (digest) ORDER BY path"
        )
        return (Record(*row) for row in rows)

    def add(self, records: Sequence[Record], vectors: Mapping[bytes, Vectors]) -> None:
        sizes = {record.digest: (record.width, record.height) for record in records}
        with self._writing():
            self._connection.executemany(
                "INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?)",
                ((digest, *sizes[digest], vector.astype(self._dtype).tobytes()) for digest, vector in vectors.items()),
            )
            self._connection.executemany(
                "INSERT INTO images (path, size, mtime_ns, digest, label, error) "
                "VALUES (CAST(? AS TEXT), ?, ?, ?, CAST(? AS TEXT), CAST(? AS TEXT)) "
                "ON CONFLICT (path) DO UPDATE SET size = excluded.size, mtime_ns = excluded.mtime_ns, "
                "digest = excluded.digest, label = excluded.label, error = excluded.error",
                ((_bytes(r.path), r.size, r.mtime_ns, r.digest, _bytes(r.label), _bytes(r.error)) for r in records),
            )

    def remove(self, paths: Iterable[str]) -> None:
        with self._writing():
            self._connection.executemany(
                "DELETE FROM images WHERE path = CAST(? AS TEXT)", ((_bytes(path),) for path in paths)
            )

    def compact(self, progress: bool = False) -> None:
        with self._transaction("IMMEDIATE"):  # what is searched stays as it is, and so does the revision
            self._connection.execute(
                "DELETE FROM contents WHERE digest NOT IN (SELECT digest FROM images WHERE digest IS NOT NULL)"
            )
        with self._transaction():
            self._matrix = None
            self._load_matrix(is_last=True)

    def search(
        self, queries: Vectors, k: int, without: Sequence[Collection[bytes]], label: str | None = None
    ) -> list[list[Hit]]:
        with self._transaction():
            ids, matrix = self._load_matrix()
            if label is not None:
                chosen = self._connection.execute(
                    "SELECT id FROM images WHERE label = CAST(? AS TEXT)", (_bytes(label),)
                )
                rows = np.flatnonzero(np.isin(ids, [row for (row,) in chosen]))
                ids, matrix = ids[rows], matrix[rows]
            copies = [sum(map(self._count, contents)) for contents in without]
            results = []
            parts = matrix.reshape(len(matrix) * self._crops, -1) if len(matrix) else matrix
            found = nearest(parts, queries, self._crops * (k + max(copies, default=0)))
            for contents, (rows, distances) in zip(without, found, strict=True):
                hits = []
                closest: dict[int, float] = {}  # of the parts of an image the first is the closest
                for row, distance in zip(ids[rows // self._crops].tolist(), distances.tolist(), strict=True):
                    closest.setdefault(row, distance)
                for row, distance in closest.items():
                    path, named, content = self._connection.execute(
                        "SELECT path, label, digest FROM images WHERE id = ?", (row,)
                    ).fetchone()
                    if content not in contents:
                        hits.append(Hit(path, named, distance))
                results.append(hits[:k])
            return results

    def _count(self, content: bytes) -> int:
        count: int = self._connection.execute("SELECT count(*) FROM images WHERE digest = ?", (content,)).fetchone()[0]
        return count

    def sample(self, count: int) -> tuple[list[bytes], Vectors]:
        with self._transaction():  # digests are as good as random
            rows = self._connection.execute(
                "SELECT digest, vector FROM contents ORDER BY digest LIMIT ?", (count,)
            ).fetchall()
        return [digest for digest, _ in rows], self._whole(self._read([vector for _, vector in rows]))

    def match_distance(self) -> float | None:
        with self._transaction():
            row = self._connection.execute("SELECT value FROM header WHERE key = 'match_distance'").fetchone()
        return float(row[0]) if row and row[0] else None  # an index of before has no number where there are too few

    def begin_update(self) -> None:
        with self._transaction("IMMEDIATE"):
            self._connection.execute("INSERT OR REPLACE INTO header VALUES ('updating', '')")

    def is_updating(self) -> bool:
        with self._transaction():
            return self._connection.execute("SELECT 1 FROM header WHERE key = 'updating'").fetchone() is not None

    def keep_match_distance(self, distance: float) -> None:
        with self._transaction("IMMEDIATE"):  # the vectors stay as they are, and so does the revision
            self._connection.execute("INSERT OR REPLACE INTO header VALUES ('match_distance', ?)", (repr(distance),))
            self._connection.execute("DELETE FROM header WHERE key = 'updating'")

    def vectors(self) -> tuple[list[Record], Vectors]:
        with self._transaction():
            _, matrix = self._load_matrix()
            return [record for record in self._records() if record.digest is not None], self._whole(matrix)

    @property
    def _crops(self) -> int:
        return int(self.header.get("crops", 1))

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype("<f2" if self.header.get("storage") == "float16" else "<f4")

    def _read(self, rows: Sequence[bytes]) -> Vectors:
        """Kept vectors, (N, P · D), float32; those of float16 get their length of 1 back unless they are damaged."""
        matrix: Vectors = np.frombuffer(b"".join(rows), self._dtype).astype(np.float32, copy=False)
        if self._dtype.itemsize == 2 and rows:
            parts = matrix.reshape(len(rows) * self._crops, -1)
            lengths = np.linalg.norm(parts, axis=1, keepdims=True)
            parts /= np.where(np.abs(lengths - 1) < HALF_ROUNDING, lengths, 1)
        return matrix.reshape(len(rows), -1 if rows else 0)

    def _whole(self, matrix: Vectors) -> Vectors:
        """Of (N, P · D) vectors those of the whole images, (N, D)."""
        return matrix[:, : matrix.shape[1] // self._crops]

    def _load_matrix(self, is_last: bool = False) -> tuple[npt.NDArray[np.int64], Vectors]:
        """Ids and vectors of all images, by path, as this transaction sees them.

        Args:
            is_last: Nobody writes after this, so that they are worth keeping.
        """
        revision = self._revision()
        known = self._matrix[1:] if self._matrix is not None and self._matrix[0] == revision else None
        if known is not None and not self._own:
            return known
        found = _read_matrix(self._derived, revision)
        if found is not None and not len(self._damaged(found[1])):
            self._own = False
        elif known is not None:
            return known
        else:
            self._own = not is_last and self._is_locked()
            found = self._make_matrix(revision, is_last) or self._build_matrix()
            self._check(*found)
        self._matrix = revision, *found
        return found

    @property
    def _derived(self) -> Path:
        return self.path.with_name(self.path.name + ".vectors")

    def _is_locked(self) -> bool:
        """Whether somebody updates the index: what is derived from it is soon that of another revision."""
        lock = lock_of(self.path)
        try:
            if lock.exists():
                with FileLock(lock, timeout=0):
                    pass
        except (Timeout, OSError):
            return True
        return False

    def _make_matrix(self, revision: str, is_last: bool) -> tuple[npt.NDArray[np.int64], Vectors] | None:
        """Write the matrix file, or one of its own that goes with this process; None where neither can be."""
        hidden = f".{self._derived.name}."  # as ``atomic_write`` names what it writes
        with contextlib.suppress(OSError):
            if self._own:
                with tempfile.TemporaryFile(dir=self.path.parent, prefix=hidden, suffix=".tmp") as file:
                    self._write_matrix(file, revision)
                    return _map_matrix(file, revision)
            for left in self.path.parent.glob(f"{glob.escape(hidden)}*.tmp") if is_last else ():  # by a killed process
                with contextlib.suppress(OSError):
                    left.unlink()
            with atomic_write(self._derived) as file:
                self._write_matrix(file, revision)
        return _read_matrix(self._derived, revision)

    def _check(self, ids: npt.NDArray[np.int64], matrix: Vectors) -> None:
        """Let no damaged vector hide an image."""
        damaged = self._damaged(matrix)
        if len(damaged):
            image = (int(ids[damaged[0]]),)
            (path,) = self._connection.execute("SELECT path FROM images WHERE id = ?", image).fetchone()
            others = f" and {len(damaged) - 1} more are" if len(damaged) > 1 else " is"
            raise UserError(f"{self.path}: the vector of {path}{others} damaged: delete the index and index again")

    def _damaged(self, matrix: Vectors) -> npt.NDArray[np.int64]:
        parts = matrix.reshape(len(matrix) * self._crops, -1) if len(matrix) else matrix
        return np.unique(damaged_rows(parts) // self._crops)

    def _rows(self) -> Iterator[tuple[int, bytes]]:
        return iter(
            self._connection.execute("SELECT id, vector FROM images JOIN contents USING (digest) ORDER BY path")
        )

    def _write_matrix(self, file: IO[bytes], revision: str) -> None:
        """Write the vectors, tagged with the revision, and the ids."""
        ids = array("q")

        def vectors() -> Iterator[bytes]:
            rows = self._rows()
            while some := list(islice(rows, ROWS_AT_ONCE)):
                ids.extend(image for image, _ in some)
                yield from (vector.tobytes() for vector in self._read([vector for _, vector in some]))

        (length,) = self._connection.execute("SELECT ifnull(max(length(vector)), 0) FROM contents").fetchone()
        write_tagged(file, revision.encode(), "<f4", (length // self._dtype.itemsize,), vectors())
        np.save(file, np.array(ids, np.int64))
        np.save(file, zlib.crc32(ids))

    def _build_matrix(self) -> tuple[npt.NDArray[np.int64], Vectors]:
        rows = list(self._rows())
        ids = np.array([image for image, _ in rows], np.int64)
        return ids, self._read([vector for _, vector in rows])

    def close(self) -> None:
        self._matrix = None
        self._connection.close()


def lock_of(path: Path) -> Path:
    """The file that whoever updates an index locks."""
    return path.with_name(path.name + ".lock")


def _create(path: Path, header: Mapping[str, str]) -> None:
    """Create an empty index aside and move it into place, so that no reader finds a half of one."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with contextlib.closing(sqlite3.connect(aside)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(TABLES)
            connection.executemany(
                "INSERT INTO header VALUES (?, CAST(? AS TEXT))",
                [("revision", b""), *((key, _bytes(value)) for key, value in header.items())],
            )
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
            connection.commit()
        for suffix in ("-wal", "-shm"):  # of an index that was deleted: SQLite knows a log by its name alone
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        aside.replace(path)
    finally:
        for suffix in ("", "-wal", "-shm"):
            aside.with_name(aside.name + suffix).unlink(missing_ok=True)


def _bytes(text: str | None) -> bytes | None:
    """Text of any file name for SQLite, which takes it back with ``CAST(? AS TEXT)``."""
    return None if text is None else os.fsencode(text)


def _read_matrix(path: Path, revision: str) -> tuple[npt.NDArray[np.int64], Vectors] | None:
    """Map a matrix file; None if there is none, or it belongs to another revision, or is damaged."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return _map_matrix(file, revision)
    return None


def _map_matrix(file: IO[bytes], revision: str) -> tuple[npt.NDArray[np.int64], Vectors] | None:
    # NumPy raises nearly anything on a damaged header; whatever is wrong with it, it is made again.
    with contextlib.suppress(Exception):
        file.seek(0)
        matrix = read_tagged(file, revision.encode()).view(np.ndarray)
        ids = np.load(file)
        if np.load(file) == zlib.crc32(ids):
            return ids, matrix
    return None
