"""A file that holds an array derived from something else, with a tag by which one sees whether it still belongs to it.

It is a sequence of NPY arrays (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html): the tag, the
array, and whatever smaller ones the caller saves behind them.
"""

from collections.abc import Iterable
from typing import IO, Any

import numpy as np
import numpy.typing as npt


def write_tagged(file: IO[bytes], tag: bytes, descr: str, shape: tuple[int, ...], rows: Iterable[bytes]) -> None:
    """Write a tag and an array, a row at a time, so that memory stays flat.

    Args:
        file: Where to; it stands behind the array afterwards.
        tag: What the array is derived from.
        descr: Type of its numbers, such as ``<f4``.
        shape: Of a row.
        rows: The numbers of each row; how many there are need not be known.
    """
    np.save(file, np.frombuffer(tag, np.uint8))
    start, count = file.tell(), 0
    header = {"descr": descr, "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**header, "shape": (0, *shape)})
    for row in rows:
        file.write(row)
        count += 1
    end = file.tell()
    file.seek(start)  # NPY headers leave room for the first dimension to change
    np.lib.format.write_array_header_1_0(file, {**header, "shape": (count, *shape)})
    file.seek(end)


def read_tagged(file: IO[bytes], tag: bytes, max_bytes: float = 0) -> npt.NDArray[Any]:
    """Read the array of a file that ``write_tagged`` wrote; the file stands behind it afterwards.

    Args:
        file: Where from.
        tag: What the array must be derived from.
        max_bytes: A larger array stays in the file and is mapped; 0 maps any that isn't empty.

    Raises:
        Exception: The tag is another. On a damaged file, NumPy raises nearly anything.
    """
    if np.load(file).tobytes() != tag:
        raise ValueError("derived from something else")
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not written by this version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    offset, count = file.tell(), int(np.prod(shape))
    size = count * dtype.itemsize
    if size <= max_bytes:
        return np.fromfile(file, dtype, count).reshape(shape)
    array = np.memmap(file, dtype, "r", offset, shape)
    file.seek(offset + size)
    return array
