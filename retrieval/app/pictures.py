"""Pictures as the page shows them."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from datamodules.errors import UserError, reason
from datamodules.images import ImageError, image_size, read_bytes, read_image
from retrieval.app.client import LISTEN, Upload, stored
from retrieval.query import Region

THUMBNAIL = 320  # longer side, in pixels
DIGIT = 112  # side that a training image is shown with at least
ACCENT = (249, 115, 22)  # as the theme's
NOT_SHOWN = (".tif", ".tiff")  # images that browsers don't show

GALLERY: dict[str, Any] = {
    "height": "auto",
    "object_fit": "contain",
    "allow_preview": False,
    "interactive": False,
    "buttons": [],
}


def thumbnail(path: Path) -> Image.Image:
    """A small picture of a file, which is kept for the next time.

    Raises:
        ImageError: It can't be read.
    """
    try:
        return _read_thumbnail(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise ImageError(f"{path}: {reason(error)}") from error


@lru_cache(maxsize=256)
def _read_thumbnail(path: Path, mtime_ns: int) -> Image.Image:
    image = read_image(path, channels=3, side=THUMBNAIL)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def scale(path: Path) -> float:
    """How much smaller the small picture of a file is."""
    return thumbnail(path).width / image_size(read_bytes(path))[0]


def marked(path: Path, region: Region | None = None, corner: tuple[int, int] | None = None) -> Image.Image:
    """A small picture of a file, in which a part stands out, or its first corner; both in pixels of the file."""
    image = thumbnail(path).copy()
    if corner is not None:
        x, y = (edge * scale(path) for edge in corner)
        ImageDraw.Draw(image).ellipse((x - 4, y - 4, x + 4, y + 4), fill=ACCENT, outline="white")
    elif region is not None:
        left, top, right, bottom = (round(edge * scale(path)) for edge in region)
        if left < right and top < bottom:  # or else the search says so
            part = image.crop((left, top, right, bottom))
            image = Image.blend(image, Image.new("RGB", image.size, "white"), 0.6)
            image.paste(part, (left, top))
            ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), outline=ACCENT, width=3)
    return image


def enlarged(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """(C, S, S), uint8 -> a picture whose pixels can be seen."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    factor = -(-DIGIT // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def blank() -> Image.Image:
    """What stands where there is no picture."""
    return Image.new("RGBA", (4, 4))


def upload_image(label: str, height: int, elem_id: str) -> gr.Image:
    """Where a picture is uploaded or pasted, which is shown also where its format is none that browsers know."""
    image = gr.Image(sources=["upload", "clipboard"], label=label, height=height, format="png", elem_id=elem_id)

    def as_png(upload: Upload) -> Any:
        path = stored(upload)
        if path.suffix.lower() not in NOT_SHOWN:
            return gr.skip()
        try:
            return read_image(path, channels=3)
        except UserError:  # which is said where the image is looked at
            return gr.skip()

    image.upload(as_png, image, image, show_progress="hidden", **LISTEN)
    return image
