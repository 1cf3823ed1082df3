"""How many pixels are decoded: of one image at most, and of several at the same time."""

import contextlib
import math
import os
from collections.abc import Iterator
from threading import Condition, Lock

import psutil
from PIL import Image

from datamodules.errors import UserError

MAX_MEGAPIXELS = 256  # of an image that is read: more than cameras and phones make, and 1 GB while it is decoded
LIMIT = "DIGITDOODLE_MAX_MEGAPIXELS"  # environment variable: another limit
LARGE = 40_000_000  # pixels above which an image is made smaller while it is decoded
REDUCED = 20_000_000  # pixels that are left of it at most; more than a quarter of them are
# Of all other images together: 512 MB, as Pillow has 4 bytes a pixel, or a 64th of a large memory.
AT_ONCE = max(128_000_000, psutil.virtual_memory().total // 256)
# Memory in pieces of more than 32 MiB is what glibc gives back to the system when it is freed; in Pillow's of 16 MiB,
# each thread that has decoded a large image would keep as much.
Image.core.set_block_size(128 << 20)  # type: ignore[attr-defined]

_one_large = Lock()
_freed = Condition()
_taken = 0


@contextlib.contextmanager
def room_for(size: tuple[int, int]) -> Iterator[None]:
    """Wait until there is room to decode an image: one that is ``LARGE`` at a time, others up to ``AT_ONCE`` pixels.

    Args:
        size: Its width and height.

    Raises:
        ValueError: It has more pixels than are read.
        UserError: The limit in the environment is not a number.
    """
    global _taken
    pixels = math.prod(size)
    if pixels > max_megapixels() * 1e6:
        raise ValueError(
            f"{size[0]} × {size[1]} pixels are {pixels / 1e6:g} megapixels, more than the {max_megapixels():g} that "
            f"are read; make it smaller, or set {LIMIT} to a higher limit in the environment"
        )
    if pixels > LARGE:
        with _one_large:
            yield
        return
    with _freed:
        _freed.wait_for(lambda: _taken + pixels <= AT_ONCE)
        _taken += pixels
    try:
        yield
    finally:
        with _freed:
            _taken -= pixels
            _freed.notify_all()


def max_megapixels() -> float:
    """How many megapixels an image may have, by the environment or else ``MAX_MEGAPIXELS``."""
    text = os.environ.get(LIMIT, "")
    try:
        limit = float(text) if text else MAX_MEGAPIXELS
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise UserError(f"{LIMIT} must be a number of megapixels, such as {MAX_MEGAPIXELS}, got {text}")
    return limit


def reduction(size: tuple[int, int]) -> int:
    """By what the sides of an image are divided: 1, or the power of 2 that leaves ``REDUCED`` pixels of a large one."""
    factor = 1
    while math.prod(size) > LARGE and math.prod(-(-length // factor) for length in size) > REDUCED:
        factor *= 2
    return factor
