"""Write files so that they are whole or not there, where they can stand; and print their names."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from datamodules.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def written_aside(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a file beside the path, which takes its place when the block ends well and is removed otherwise.

    What a link points to is replaced, not the link. A device or a pipe can't be replaced and is written to.

    Args:
        path: Where the file shall stand; what stands there meanwhile stays as it is.
        mode: As for ``open``.
        options: As for ``open``.

    Raises:
        OSError: It can't be written: no permission, no room.
    """
    if path.exists() and not path.is_file():
        with path.open(mode, **options) as file:
            yield file
        return
    place = path.resolve()
    aside = place.with_name(f".{place.name}.{os.urandom(4).hex()}.tmp")
    try:
        with aside.open(mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(place)
    except OSError as error:
        if error.filename != str(aside):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # the name that the user knows
    finally:
        with contextlib.suppress(OSError):  # it has taken its place, or was never made
            aside.unlink()


def check_place(path: Path) -> None:
    """Refuse a place where no file can stand, before anything is computed for it.

    Raises:
        UserError: Its folder isn't there, or it is a folder.
    """
    if not path.parent.is_dir():
        raise UserError(f"{path}: no such folder")
    if path.is_dir():
        raise UserError(f"{path}: a folder; name a file in it")


def picture_format(path: Path) -> str:
    """The format that the name of a picture ends in, such as ``svg``; ``png`` if it ends in none.

    Raises:
        UserError: It ends in something else.
    """
    from matplotlib.backend_bases import FigureCanvasBase  # takes half a second, which few commands need

    kind = path.suffix.lower().lstrip(".") or "png"
    if kind not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"{path}: no picture format; name it .png, .pdf or .svg")
    return kind


def check_figure(path: Path) -> None:
    """Refuse a place where no picture can stand, before anything is computed for it.

    Raises:
        UserError: As ``check_place`` and ``picture_format`` say.
    """
    picture_format(path)
    check_place(path)


def save_figure(figure: "Figure", path: Path) -> None:
    """Draw a figure into a file.

    Raises:
        UserError: As ``picture_format`` says.
        OSError: It can't be written.
    """
    kind = picture_format(path)
    with written_aside(path) as file:
        figure.savefig(file, dpi=120, format=kind)


def printable(text: str) -> str:
    """Text on one line, whatever a file name holds: other signs as escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def short_name(name: str, length: int = 24) -> str:
    """A name for a picture, on one line: its end, if it has more than so many signs."""
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)
    return shown if len(shown) <= length else "…" + shown[1 - length :]
