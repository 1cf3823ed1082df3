"""Decode every image once; keep the pixels in one file that the next start reads instead."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import platformdirs
import psutil
from tqdm import tqdm

from datamodules.errors import UserError, reason
from datamodules.images import ImageError, decode_image, read_bytes, to_pixels
from datamodules.splits import DIGEST_BYTES, digest
from datamodules.tagged_array import read_tagged, write_tagged
from datamodules.writing import atomic_write

FORMAT = 2
BLOCK = 1024  # images decoded ahead of the writer: bounds the memory that building a cache takes


@dataclass(frozen=True)
class DecodedImages:
    """The pixels of many image files.

    Attributes:
        pixels: (N, C, S, S), uint8, a row for each file that can be read; in memory, or mapped from the cache file
            where they are too many for that.
        digests: (N, 16), uint8; equal for byte-identical files.
        errors: What is wrong with each of the other files, by its place among all files.
    """

    pixels: npt.NDArray[np.uint8]
    digests: npt.NDArray[np.uint8]
    errors: dict[int, str]


def default_cache_dir() -> Path:
    """Where caches go unless told otherwise, such as ``~/.cache/digitdoodle``: where the system keeps them."""
    return platformdirs.user_cache_path("digitdoodle", appauthor=False)


def load_images(
    root: Path,
    paths: list[Path],
    size: int,
    channels: int,
    cache_dir: Path,
    max_ram_share: float,
    classes: Sequence[str] = (),
) -> DecodedImages:
    """Give the pixels of the files, from the cache if it is still true, else by decoding them all.

    There is one cache file per (root, size, channels, classes). It is true as long as the files' names, sizes and
    modification times are. It is written aside and moved into place, so that it is whole or not there, and two
    processes may build it at once.

    Args:
        root: The folder that the paths lie below, most of them.
        paths: The files, in the order of the rows.
        size: Side of the square that each image is resized to, in pixels.
        channels: 1 for grey, 3 for colour.
        cache_dir: Folder for the cache file; made if need be.
        max_ram_share: Pixels that take a larger share than this of the installed memory stay in the file.
        classes: Names of the classes that are kept, where not all are.

    Raises:
        UserError: The cache can't be written (disk full, no permission); nothing is left of it then.
    """
    described = "\0".join(map(str, (root.resolve(), size, channels, *classes)))
    key = digest(described.encode("utf-8", "surrogateescape")).hex()
    cache = cache_dir / f"{root.resolve().name[:40]}-{size}px-{key[:12]}.cache"
    fingerprint = _fingerprint(root, paths)
    # NumPy raises nearly anything on a damaged header; whatever is wrong with a cache, it is built anew.
    with contextlib.suppress(Exception):
        found = _read(cache, fingerprint, len(paths), max_ram_share)
        # What couldn't be read may be readable by now, with the file as it was; or has another name from here.
        again = {row: _decode(paths[row], size, channels) for row in found.errors}
        errors = {row: error for row, error in again.items() if isinstance(error, str)}
        if len(errors) == len(again):
            return replace(found, errors=errors)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(cache) as file:
            _build(file, paths, size, channels, fingerprint)
    except OSError as error:
        raise UserError(
            f"can't keep the decoded images in {cache_dir}: {reason(error)}; "
            "make room there, or name another folder with --data.cache_dir"
        ) from error
    try:
        return _read(cache, fingerprint, len(paths), max_ram_share)
    except ValueError as error:
        raise UserError(
            f"{cache}: another run has just decoded other images of {root}: start again, or name another folder with "
            "--data.cache_dir"
        ) from error


def _fingerprint(root: Path, paths: list[Path]) -> bytes:
    state = hashlib.blake2b(f"format {FORMAT}".encode(), digest_size=DIGEST_BYTES)
    for path in paths:
        name = path.relative_to(root) if path.is_relative_to(root) else path
        try:
            stat = path.stat()
            line = f"\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}"
        except OSError:  # a dangling link: the decoder will say so
            line = f"\0{name}\0missing"
        state.update(line.encode("utf-8", "surrogateescape"))
    return state.digest()


def _decode(path: Path, size: int, channels: int) -> tuple[npt.NDArray[np.uint8], bytes] | str:
    try:
        data = read_bytes(path)
        return to_pixels(decode_image(data, path, channels), size), digest(data)
    except ImageError as error:
        return str(error)


def _build(file: IO[bytes], paths: list[Path], size: int, channels: int, fingerprint: bytes) -> None:
    """Write the cache: the pixels, tagged with the fingerprint, the digests, and the errors as JSON."""
    digests: list[bytes] = []
    errors: dict[int, str] = {}

    def rows() -> Iterator[bytes]:
        with (
            ThreadPoolExecutor() as pool,  # Pillow decodes and resizes without holding the interpreter lock
            tqdm(total=len(paths), desc="Decoding images", unit="img", delay=1, leave=False) as progress,
        ):
            for start in range(0, len(paths), BLOCK):
                block = paths[start : start + BLOCK]
                for row, decoded in enumerate(pool.map(lambda path: _decode(path, size, channels), block), start):
                    if isinstance(decoded, str):
                        errors[row] = decoded
                    else:
                        digests.append(decoded[1])
                        yield decoded[0].tobytes()
                    progress.update()

    write_tagged(file, fingerprint, "|u1", (channels, size, size), rows())
    np.save(file, np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES))
    np.save(file, np.frombuffer(json.dumps(errors).encode(), np.uint8))


def _read(cache: Path, fingerprint: bytes, count: int, max_ram_share: float) -> DecodedImages:
    """Read a cache file.

    Raises:
        Exception: There is none, or it is damaged, or it was made from other files.
    """
    with cache.open("rb") as file:
        pixels = read_tagged(file, fingerprint, max_ram_share * psutil.virtual_memory().total)
        digests = np.load(file)
        errors = json.loads(np.load(file).tobytes())
    if len(pixels) != len(digests) or len(digests) + len(errors) != count:
        raise ValueError("cut off")
    return DecodedImages(pixels, digests, {int(row): text for row, text in errors.items()})
