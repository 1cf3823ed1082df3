"""Draw figures into files."""

from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import UserError
from datamodules.writing import atomic_write, check_output

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture_format(path: Path) -> str:
    """The format that the name of a picture ends in, such as ``svg``; ``png`` if it ends in none.

    Raises:
        UserError: It ends in something else.
    """
    from matplotlib.backend_bases import FigureCanvasBase  # takes half a second, which few commands need

    kind = path.suffix.lower().lstrip(".") or "png"
    if kind not in FigureCanvasBase.get_supported_filetypes():
        raise UserError(f"{path}: not a picture format; name it .png, .pdf or .svg")
    return kind


def check_figure(path: Path) -> None:
    """Refuse a place where no picture can stand, before anything is computed for it.

    Raises:
        UserError: As ``check_output`` and ``picture_format`` say.
    """
    picture_format(path)
    check_output(path)


def save_figure(figure: "Figure", path: Path) -> None:
    """Draw a figure into a file.

    Raises:
        UserError: As ``picture_format`` says.
        OSError: It can't be written.
    """
    kind = picture_format(path)
    with atomic_write(path) as file:
        figure.savefig(file, dpi=120, format=kind)
