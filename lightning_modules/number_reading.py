"""Read the numbers on a picture."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from datamodules.images import decode_image, image_size, read_bytes
from datamodules.ink import SIDE
from datamodules.lines import find_lines
from datamodules.text import as_text
from lightning_modules.answers import not_finite
from lightning_modules.ctc_decoding import likeliest_texts, match_text, text_probability


class Reader(Protocol):
    """What reads lines: a ``LineReader``, or what it was exported to.

    Attributes:
        class_names: The signs.
        image_size: Height of the lines, in pixels.
    """

    class_names: list[str]
    image_size: int

    def read_columns(self, line: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(H, W), uint8 -> (T, K + 1), float32: calibrated probabilities of the blank and of each sign, by column."""


@dataclass(frozen=True)
class Number:
    """A number that was read on a picture.

    Attributes:
        text: Its signs.
        confidence: How likely the text is, in [0, 1].
        box: Left, upper, right and lower edge in the picture's pixels.
        row: The row that it stands in, from 0 at the top.
    """

    text: str
    confidence: float
    box: tuple[int, int, int, int]
    row: int

    @property
    def doubtful(self) -> bool:
        """Whether it is more likely wrong than right."""
        return self.confidence < 0.5

    def to_dict(self) -> dict[str, Any]:
        """What is written of it: its row, from 1, text, confidence and box."""
        left, top, right, bottom = self.box
        where = {"left": left, "top": top, "width": right - left, "height": bottom - top}
        return {"row": self.row + 1, "text": self.text, "confidence": round(self.confidence, 6), **where}


@dataclass(frozen=True)
class FileNumbers:
    """What was read on the picture in a file.

    Attributes:
        path: The file.
        numbers: The numbers, with their boxes in the file's pixels, upright.
        size: Width and height of the picture in these pixels.
    """

    path: Path
    numbers: list[Number]
    size: tuple[int, int]

    def rows(self) -> list[dict[str, object]]:
        """What is written of each number: the file, and what ``Number.to_dict`` has."""
        return [{"path": str(self.path), **number.to_dict()} for number in self.numbers]

    def mark(self, picture: Image.Image) -> Image.Image:
        """The picture, of any size, with the numbers drawn on it; see ``mark_numbers``."""
        return mark_numbers(picture, _scale_boxes(self.numbers, self.size, picture.size))


def read_file(model: Reader, path: Path, pattern: re.Pattern[str] | None = None) -> tuple[FileNumbers, Image.Image]:
    """Read the numbers on the picture in a file, as ``read_picture``; also gives the picture, smaller if it is large.

    Raises:
        ImageError: The file can't be read.
        UserError: The network's outputs are not finite.
    """
    data = read_bytes(path)
    picture, size = decode_image(data, path, channels=3, side=SIDE), image_size(data)
    return FileNumbers(path, _scale_boxes(read_picture(model, picture, pattern), picture.size, size), size), picture


def _scale_boxes(numbers: Sequence[Number], before: tuple[int, int], after: tuple[int, int]) -> list[Number]:
    """Numbers with their boxes in the pixels of the same picture in another size."""
    (w, h), (width, height) = before, after
    scaled = []
    for number in numbers:
        left, top, right, bottom = number.box
        box = (left * width // w, top * height // h, -(-right * width // w), -(-bottom * height // h))
        scaled.append(replace(number, box=box))
    return scaled


def read_picture(model: Reader, picture: Image.Image, pattern: re.Pattern[str] | None = None) -> list[Number]:
    """Read the numbers on a picture, in the order in which they are read: rows from above, each from the left.

    Args:
        model: The reader.
        picture: Of mode ``L`` or ``RGB``, upright.
        pattern: What each number is to be, as a whole; what can't well be read so is left out.

    Returns:
        Numbers; none where nothing is taken for one.

    Raises:
        UserError: The network's outputs are not finite.
    """
    numbers = []
    for line in find_lines(picture, model.image_size):
        columns = model.read_columns(line.pixels)
        if not np.isfinite(columns).all():
            raise not_finite()
        text = likeliest_texts(columns)[0] if pattern is None else match_text(columns, pattern, model.class_names)
        if text:
            confidence = text_probability(columns, text)
            numbers.append(Number(as_text(text, model.class_names), confidence, line.box, line.row))
    return numbers


def mark_numbers(picture: Image.Image, numbers: Sequence[Number]) -> Image.Image:
    """A picture with a box around each number that was read and its text above; red where it is doubtful.

    Where a number is too near the top for its text, the picture gets a white rim there.

    Args:
        picture: Of mode ``RGB``.
        numbers: What was read on it.
    """
    size = max(12, round(max(picture.size) / 45))
    font = ImageFont.load_default(size)
    needed = 6 - math.floor(ImageDraw.Draw(picture).textbbox((0, 0), "0?", font=font, anchor="ls")[1])
    rim = max([0, *(needed - number.box[1] for number in numbers)])  # so that no label covers its own number
    marked = ImageOps.expand(picture, (0, rim, 0, 0), fill="white")
    brush = ImageDraw.Draw(marked)
    for number in numbers:
        left, top, right, bottom = number.box
        top, bottom = top + rim, bottom + rim
        colour, text = ("#c62828", f"{number.text}?") if number.doubtful else ("#1b7d2b", number.text)
        brush.rectangle((left, top, right, bottom), outline=colour, width=max(1, size // 10))
        wide = 4 + math.ceil(brush.textlength(text, font=font))
        start = max(0, min(left, marked.width - wide))
        brush.rectangle((start, top - needed, start + wide - 1, top), fill=colour)
        brush.text((start + 2, top - 3), text, font=font, fill="white", anchor="ls")
    return marked
