"""Find image files and read them: the one place where a path becomes pixels."""

import io
import math
import os
import re
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from datamodules.errors import UserError, reason

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
FOLDER_SETTINGS = frozenset({"thumbs.db", "desktop.ini"})  # which a desktop leaves in folders of images


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


def list_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """List the image files below a folder, and what is passed over, each in natural order of their paths.

    Subfolders are searched. Hidden files and folders (``.ipynb_checkpoints``), a disk's ``lost+found`` and what a
    desktop leaves behind are in neither list.

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
        folders[:] = [name for name in folders if not name.startswith(".") and name != "lost+found"]
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
            kind = f"{suffix} files, which are not read as images" if suffix else "files without an extension"
        kinds.setdefault(kind, []).append(name)
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', …' if names[3:] else ''})" for kind, names in kinds.items()
    ]
    return f"{folder}: passed over {'; '.join(parts)}" if parts else None


def no_images(folder: Path) -> UserError:
    """What to raise for a folder in which ``find_images`` finds none."""
    return UserError(f"{folder}: no images in this folder ({', '.join(sorted(EXTENSIONS))})")


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


def decode_image(data: bytes, path: Path, channels: int, side: int | None = None) -> Image.Image:
    """Decode the bytes of an image file, upright, as grey or colour.

    The first frame of an animation counts. The EXIF orientation is applied. 16-bit grey is scaled to 8 bits.
    Transparent pixels are seen before white, as a browser shows them, but a nearly white drawing on nothing is seen
    before black. Grey from colour is ITU-R 601-2 luma.

    Args:
        data: The whole file.
        path: Where the data come from, for the error message.
        channels: 1 for grey (mode ``L``) or 3 for colour (mode ``RGB``).
        side: How long the longer side must be, in pixels: a JPEG is decoded at the half, quarter or eighth of its size
            that still is, which is faster. None decodes all of it.

    Raises:
        ImageError: The data are not an image that Pillow can read, are cut off, have pixels without an agreed
            meaning, or unfold to more of them than Pillow's guard against decompression bombs allows.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if side is not None:
                width, height = (math.ceil(side * length / max(image.size)) for length in image.size)
                image.draft(None, (width, height))
            image.load()
            upright = ImageOps.exif_transpose(image)
        if upright.mode == "I" or upright.mode.startswith("I;16"):
            wide = np.asarray(upright, dtype=np.float32)
            upright = Image.fromarray((wide / 257).round().clip(0, 255).astype(np.uint8), mode="L")
        elif upright.mode == "F":
            raise ValueError("floating-point pixels have no agreed white; save it with 8 or 16 bits")
        elif upright.mode == "LAB":  # from which Pillow knows no way to grey
            upright = upright.convert("RGB")
        elif upright.has_transparency_data:
            colour = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", colour.size, _behind(colour)), colour)
        return upright.convert("L" if channels == 1 else "RGB")
    # Pillow's decoders raise nearly anything on a damaged file, from SyntaxError to struct.error.
    except Exception as error:
        what = str(error).partition(" <")[0] or type(error).__name__ if data else "empty file"
        raise ImageError(f"{path}: {what}") from error


def image_size(data: bytes) -> tuple[int, int]:
    """Width and height of an image that ``decode_image`` can read, upright, without decoding its pixels."""
    with Image.open(io.BytesIO(data)) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    return (height, width) if turned else (width, height)


def _behind(image: Image.Image) -> str:
    """What to see an image of mode ``RGBA`` before: white would hide a white pen's drawing."""
    drawn = np.asarray(image)[..., 3] > 127
    brightness = np.asarray(image.convert("L"))[drawn]
    return "black" if 0 < brightness.size < drawn.size / 2 and brightness.mean() > 235 else "white"


def read_image(path: Path, channels: int, side: int | None = None) -> Image.Image:
    """Read an image file, upright, as grey (1 channel) or colour (3), at least ``side`` long; see ``decode_image``.

    Raises:
        ImageError: The file is missing, may not be read, or is not a complete image.
    """
    return decode_image(read_bytes(path), path, channels, side)


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
