"""An index as a file for other programs, and back: NumPy's or Parquet."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from datamodules.errors import UserError
from datamodules.writing import atomic_write
from retrieval.match_distance import match_distance
from retrieval.search import Vectors, damaged_rows
from retrieval.stores.base import MissingIndexError, Record, Store
from retrieval.stores.location import Location

HEADER = "digitdoodle"  # under this name, what made the vectors, as JSON
TEXTS = ("path", "label")
NUMBERS = ("size", "mtime_ns", "width", "height")
ARRAYS = ("digest", "vector")


@dataclass(frozen=True)
class Exported:
    """What a file holds of an index.

    Attributes:
        header: What made the vectors, as in ``Store``.
        records: N images, by path.
        vectors: (N, D), float32, of length 1.
    """

    header: Mapping[str, str]
    records: list[Record]
    vectors: Vectors


def check_suffix(path: Path) -> None:
    """Refuse a file of another kind.

    Raises:
        UserError: It ends neither in ``.npz`` nor in ``.parquet``, or Parquet can't be read and written here.
    """
    if path.suffix not in (".npz", ".parquet"):
        raise UserError(f"{path}: name a file that ends in .npz (NumPy) or .parquet")
    if path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError('Parquet needs pyarrow: pip install ".[parquet]" in the clone') from error


def export_index(store: Store, path: Path) -> int:
    """Write the images of an index and their vectors to a file; returns how many there are.

    ``vector`` is (N, D), float32; ``path`` and ``label`` are texts, the label empty where there is none; ``digest`` is
    16 bytes that identify the content; ``size``, ``mtime_ns``, ``width`` and ``height`` are those of ``Record``.

    Raises:
        UserError: As ``check_suffix``; or a file's name is no text, which Parquet can't hold.
    """
    check_suffix(path)
    records, vectors = store.vectors()
    columns: dict[str, Any] = {name: [getattr(record, name) or "" for record in records] for name in TEXTS}
    columns |= {name: np.array([getattr(record, name) for record in records], np.int64) for name in NUMBERS}
    digests = b"".join(record.digest or b"" for record in records)
    columns["digest"] = np.frombuffer(digests, np.uint8).reshape(len(records), -1 if records else 0)
    header = json.dumps({key: value for key, value in store.header.items() if key not in ("crops", "storage")})
    with atomic_write(path) as file:
        if path.suffix == ".npz":
            texts = {name: np.array(columns[name], str) for name in TEXTS}
            np.savez(file, **{**columns, **texts, "vector": vectors, HEADER: np.array(header)})
        else:
            _write_parquet(file, columns, vectors, header, path)
    return len(records)


def _write_parquet(file: IO[Any], columns: dict[str, Any], vectors: Vectors, header: str, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        texts = {name: pa.array(columns[name], pa.string()) for name in TEXTS}
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: a file's name is not UTF-8, which Parquet can't hold; export to .npz") from error
    width = vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    digests = pa.FixedSizeListArray.from_arrays(pa.array(columns["digest"].ravel()), columns["digest"].shape[1] or 1)
    arrays = {
        **texts,
        **{name: pa.array(columns[name]) for name in NUMBERS},
        "digest": digests,
        "vector": pa.FixedSizeListArray.from_arrays(flat, width or 1),
    }
    pq.write_table(pa.table(arrays).replace_schema_metadata({HEADER: header}), file)


def read_exported(path: Path) -> Exported:
    """Read what ``export_index`` wrote; nothing in it can run code.

    Raises:
        UserError: It is no such file, or is damaged.
    """
    check_suffix(path)
    try:
        header, columns = (_read_npz if path.suffix == ".npz" else _read_parquet)(path)
        digests = columns["digest"].astype(np.uint8)
        texts = zip(*(columns[name].tolist() for name in TEXTS), strict=True)
        numbers = zip(*(columns[name].tolist() for name in NUMBERS), strict=True)
        records = [
            Record(name, size, mtime_ns, digest.tobytes(), label or None, width, height)
            for (name, label), (size, mtime_ns, width, height), digest in zip(texts, numbers, digests, strict=True)
        ]
        vectors = columns["vector"].astype(np.float32).reshape(len(records), -1 if records else 0)
        if not all(isinstance(header[key], str) for key in ("encoder", "built")):
            raise ValueError("no encoder")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not an index that `python -m retrieval export` wrote, or damaged") from error
    damaged = damaged_rows(vectors)
    if len(damaged):
        raise UserError(f"{path}: the vector of {records[damaged[0]].path} is damaged: export it again")
    return Exported(header, records, vectors)


def _read_npz(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        return json.loads(str(file[HEADER])), dict(file)


def _read_parquet(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Before the columns, which may be large, of a file that is none of ours.
    header = json.loads((pq.read_schema(path).metadata or {})[HEADER.encode()])
    table = pq.read_table(path, columns=[*TEXTS, *NUMBERS, *ARRAYS])
    columns = {name: table[name].to_numpy() for name in (*TEXTS, *NUMBERS)}
    for name in ARRAYS:
        values = table[name].combine_chunks()
        if not pa.types.is_fixed_size_list(values.type):
            raise ValueError(f"{name} is of another type")
        columns[name] = values.flatten().to_numpy().reshape(len(values), values.type.list_size)
    return header, columns


def import_index(path: Path, location: Location) -> int:
    """Make an index of a file that ``export_index`` wrote; returns how many images it has.

    Raises:
        UserError: There is one already, be it an empty one of another encoder, or as ``read_exported``.
    """
    exported = read_exported(path)
    with location.write_lock(wait=True):
        try:
            with location.open() as store:
                if store.records():
                    raise UserError(f"{location}: there is an index already; name another place with --index")
                for key in sorted((exported.header.keys() | store.header.keys()) - {"built", "storage"}):
                    if (there := store.header.get(key)) != (wanted := exported.header.get(key)):
                        raise UserError(
                            f"{location}: an empty index, made with {key} {there}, not {wanted}: delete it, or name "
                            "another place with --index"
                        )
        except MissingIndexError:
            pass
        with location.open(exported.header, exported.vectors.shape[1]) as store:
            contents = [record.digest or b"" for record in exported.records]
            store.add(exported.records, dict(zip(contents, exported.vectors, strict=True)))
            store.compact()
            store.keep_match_distance(match_distance(store))
    return len(exported.records)
