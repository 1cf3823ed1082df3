"""Find image files and read them: the one place where a path becomes pixels."""

import math
import os
import re
import stat
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile

from datamodules.errors import UserError, reason
from datamodules.formats import EXTENSIONS, jpeg_xl_size, open_image, passed_kind, why_unread
from datamodules.pixel_budget import reduction, room_for

NO_CONTENT = frozenset({"lost+found", "__MACOSX"})  # folders that a disk and an archive of macOS add to their content
FOLDER_SETTINGS = frozenset({"thumbs.db", "desktop.ini"})  # which a desktop leaves in folders of images


TURNS = {  # what EXIF data say of how an image lies, and what brings it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(UserError):
    """An image file that can't be read; the message starts with its path."""


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which ``2`` comes before ``10``, upper and lower case side by side."""
    parts = re.split(r"(\d+)", name.casefold())
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p)


def natural_sorted(names: Iterable[str]) -> list[str]:
    """Sort names in natural order (1, 2, 10); ties, such as ``01`` and ``1``, by the plain text."""
    return sorted(names, key=lambda name: (natural_key(name), name))


def find_images(folder: Path) -> list[Path]:
    """List the image files below a folder, in natural order of their paths; see ``list_files``.

    Raises:
        UserError: A folder can't be listed: its images would seem to be deleted.
    """
    return list_files(folder)[0]


def has_content(name: str) -> bool:
    """Whether a folder of this name may hold images of a collection."""
    return not name.startswith(".") and name not in NO_CONTENT


def list_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the image files below a folder, and what is passed over, each in natural order of their paths.

    Subfolders are searched. Hidden files and folders (``.ipynb_checkpoints``), ``lost+found``, ``__MACOSX`` and what
    a desktop leaves behind are in neither list.

    Returns:
        The files with one of ``EXTENSIONS``; then all other files, and the symbolic links to folders, which are not
        followed, so that a loop of links ends.

    Raises:
        UserError: A folder can't be listed: its images would seem to be deleted.
    """

    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # or else it has gone since its parent was listed
            raise UserError(f"{error.filename}: {reason(error)}; make the folder readable, or move it out") from error

    found: list[str] = []
    passed: list[str] = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if has_content(name)]
        links = [name for name in folders if Path(parent, name).is_symlink()]
        for name in (*files, *links):
            if not name.startswith(".") and name.lower() not in FOLDER_SETTINGS:
                kept = found if name not in links and Path(name).suffix.lower() in EXTENSIONS else passed
                kept.append(Path(parent, name).relative_to(folder).as_posix())
    return [folder / name for name in natural_sorted(found)], [folder / name for name in natural_sorted(passed)]


def passed_over(folder: Path, passed: list[Path]) -> str | None:
    """Say in a line what is passed over in a folder; None if nothing is.

    Args:
        folder: The folder.
        passed: What ``list_files`` passes over in it, and images that lie in no class folder.
    """
    kinds: dict[str, list[str]] = {}
    for path in passed:
        name = path.relative_to(folder).as_posix()
        suffix = path.suffix.lower()
        if path.is_dir():
            kind = "links to folders, which are not followed"
        elif suffix in EXTENSIONS:
            kind = "images outside of the class folders"
        else:
            kind = f"{suffix} files, {passed_kind(suffix)}" if suffix else "files without an extension"
        kinds.setdefault(kind, []).append(name)
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if names[3:] else ''})" for kind, names in kinds.items()
    ]
    return f"{folder}: passed over {'; '.join(parts)}" if parts else None


def check_folder(folder: Path) -> None:
    """Raise a ``UserError`` where there is no folder."""
    if not folder.is_dir():
        raise UserError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")


def no_images(folder: Path) -> UserError:
    """What to raise for a folder in which ``find_images`` finds none."""
    note = passed_over(folder, list_files(folder)[1])
    others = "" if note is None else f"; {note.removeprefix(f'{folder}: ')}"
    return UserError(f"{folder}: no images in this folder ({', '.join(sorted(EXTENSIONS))}){others}")


def unreadable(errors: Sequence[str], count: int) -> UserError:
    """What to raise where some of ``count`` images can't be read, by what is wrong with each."""
    broken = "\n  ".join(errors)
    what = "images can't be read, so nothing is written; repair them or leave them out"
    return UserError(f"{len(errors)} of {count} {what}:\n  {broken}")


def named_images(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Files as they are named, whatever their extensions, and the images in the folders that are named.

    Returns:
        The files, in the order of the paths; and a line for each folder in which something is passed over.

    Raises:
        UserError: One of them isn't there, or a folder has no images.
    """
    images: list[Path] = []
    notes = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        found, passed = list_files(path) if path.is_dir() else ([path], [])
        note = passed_over(path, passed)
        if note is not None:
            notes.append(note)
        if not found:
            raise no_images(path)
        images += found
    return images, notes


def decode_image(
    data: bytes, path: Path, channels: int, side: int | None = None, all_pixels: bool = False
) -> Image.Image:
    """Decode the bytes of an image file, upright, as grey or colour.

    The first frame of an animation counts. The EXIF orientation is applied; colour profiles and gamma are not. 16-bit
    grey is scaled to 8 bits. Transparent pixels are seen before white, as a browser shows them, but a nearly white
    drawing on nothing is seen before black. Grey from colour is ITU-R 601-2 luma.

    An image of more than 40 megapixels (``pixel_budget.LARGE``) comes reduced, its sides divided by 2, 4 or 8; and
    threads wait for each other where many decode large images: both bound the memory.

    Args:
        data: The whole file.
        path: Where the data come from, for the error message.
        channels: 1 for grey (mode ``L``) or 3 for colour (mode ``RGB``).
        side: How long the longer side must be, in pixels: a JPEG is decoded at the half, quarter or eighth of its size
            that still is, which is faster. None decodes all of it.
        all_pixels: Leave also a large image as large as it is, to cut a part out of it.

    Raises:
        ImageError: The data are not an image that can be read, are cut off, have pixels without an agreed meaning, or
            more of them than ``pixel_budget.MAX_MEGAPIXELS``.
    """
    try:
        with _opened(data) as image:
            return _flattened(_load(image, side, all_pixels), channels)
    except UserError:
        raise
    # Pillow's decoders raise nearly anything on a damaged file, from SyntaxError to struct.error.
    except Exception as error:
        what = str(error).partition(" <")[0] or type(error).__name__
        if what.startswith("decoder error"):  # libtiff's: damage, or a compression that it doesn't know
            what = why_unread(data)
        raise ImageError(f"{path}: {what}") from error


def convert_image(image: Image.Image, channels: int) -> Image.Image:
    """An image that was opened elsewhere as ``decode_image`` gives its file; it stays as it is.

    Raises:
        ImageError: It can't be read, or its pixels have no agreed meaning.
    """
    try:
        return _flattened(_upright(image), channels)
    except Exception as error:  # as in ``decode_image``: it may be read only now
        raise ImageError(f"image: {str(error) or type(error).__name__}") from error


def _flattened(image: Image.Image, channels: int) -> Image.Image:
    """An upright image as grey or colour of 8 bits, without transparency."""
    picture = _eight_bits(image)
    if picture.has_transparency_data:
        colour = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", colour.size, _behind(colour)), colour)
    return picture.convert("L" if channels == 1 else "RGB")


@contextmanager
def _opened(data: bytes) -> Iterator[ImageFile.ImageFile]:
    """An image file, once there is room for its pixels."""
    size = jpeg_xl_size(data)
    if size is not None:
        with room_for(size), open_image(data) as image:
            yield image
    else:
        with open_image(data) as image, room_for(image.size):
            yield image


def _load(image: ImageFile.ImageFile, side: int | None, all_pixels: bool) -> Image.Image:
    """The pixels of an image file, upright, as many as ``decode_image`` says."""
    factor = 1 if all_pixels else reduction(image.size)
    width, height = (max(length // factor, 1) for length in image.size)
    if side is not None:
        width, height = (
            min(enough, math.ceil(side * whole / max(image.size)))
            for enough, whole in zip((width, height), image.size, strict=True)
        )
    if image.format in ("JPEG", "MPO") and (width, height) != image.size:
        image.draft(None, (width, height))
    image.load()
    factor = 1 if all_pixels else reduction(image.size)
    picture = image if factor == 1 else _reduced(image, factor)
    upright = _upright(picture)
    if upright is not image:
        image.close()  # frees its pixels
    return upright


def _upright(image: Image.Image) -> Image.Image:
    """An image, turned as its EXIF data say; Pillow's own way writes these anew, and fails at any that are odd."""
    turn = TURNS.get(_orientation(image.getexif))
    if turn is None:
        return image
    upright = image.transpose(turn)
    # Nothing else counts for what follows, and it must not be turned again.
    upright.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return upright


def _orientation(read_exif: Callable[[], Image.Exif]) -> int:
    """How EXIF data say that an image lies; 1, which is upright, where they are damaged."""
    try:
        return int(read_exif().get(ExifTags.Base.Orientation, 1))
    except (SyntaxError, ValueError, TypeError, struct.error):
        return 1


def _reduced(image: ImageFile.ImageFile, factor: int) -> Image.Image:
    """An image with its sides divided by a factor, strip by strip: a copy in another mode would be as large again."""
    reduced = None
    for top in range(0, image.height, 64 * factor):
        strip = _eight_bits(image.crop((0, top, image.width, min(top + 64 * factor, image.height))))
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
        elif strip.mode in ("1", "P"):
            strip = strip.convert("RGB")
        strip = strip.reduce(factor)
        if reduced is None:
            reduced = Image.new(strip.mode, (strip.width, -(-image.height // factor)))
        reduced.paste(strip, (0, top // factor))
    assert reduced is not None
    reduced.info = {key: value for key, value in image.info.items() if key != "transparency"}  # with its orientation
    return reduced


def _eight_bits(image: Image.Image) -> Image.Image:
    """An image in a mode of 8 bits that has a way to grey.

    Raises:
        ValueError: It has none, because nobody has said what is white.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("32-bit pixels have no agreed white; save it with 8 or 16 bits")
        return Image.fromarray((wide.astype(np.float32) / 257).round().astype(np.uint8))
    return image.convert("RGB") if image.mode == "LAB" else image


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of an image that ``decode_image`` can read, upright, without decoding its pixels."""
    with open_image(data) as image:
        width, height = image.size
        # PNG's own getexif decodes the pixels, to look behind them. Pillow turns a TIFF's size itself.
        behind = image.format == "PNG" and data.rfind(b"eXIf") > data.find(b"IDAT")
        look = image.getexif if behind else partial(Image.Image.getexif, image)
        turned = image.format != "TIFF" and 5 <= _orientation(look) <= 8
    return (height, width) if turned else (width, height)


def _behind(image: Image.Image) -> str:
    """What to see an image of mode ``RGBA`` before: white would hide a white pen's drawing."""
    drawn = np.asarray(image)[..., 3] > 127
    brightness = np.asarray(image.convert("L"))[drawn]
    return "black" if 0 < brightness.size < drawn.size / 2 and brightness.mean() > 235 else "white"


def read_image(path: Path, channels: int, side: int | None = None, all_pixels: bool = False) -> Image.Image:
    """Read an image file, upright, as grey (1 channel) or colour (3), at least ``side`` long; see ``decode_image``.

    Raises:
        ImageError: The file is missing, may not be read, or is not a complete image.
    """
    return decode_image(read_bytes(path), path, channels, side, all_pixels)


def read_bytes(path: Path) -> bytes:
    """Read a whole file.

    Raises:
        ImageError: The file is missing or may not be read.
    """
    try:
        if stat.S_ISFIFO(path.stat().st_mode):  # reading it could wait for ever
            raise ImageError(f"{path}: a pipe, not a file")
        return path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {reason(error)}") from error


def to_pixels(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Resize to a square, antialiased, the sides scaled apart; returns (C, size, size), uint8."""
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
