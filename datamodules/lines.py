"""Find the numbers on a picture: rows of signs, each cut where it is wide apart, and straightened."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from datamodules.ink import FAINT, SIDE, Map, Parts, Pixels, find_ink, peak_of, read_pixels, without_lines

HEIGHT = 32  # of a line that is read, in pixels
COLUMN = 4  # of its pixels, from left to right, are read as one
CLEAR = 8  # standard deviations of the ground by which ink is clear; a printed ground leaves half of that
MANY = 40  # parts of what is not clear, beyond which it is grain
APART = 0.7  # heights of a sign: what is wider apart is not of one number
LARGE = 0.5  # of the usual or the tallest height: what is lower is a dot, a dash or a part of a sign
MARGIN = 0.08  # heights of a line that are left above and below it
FULL = 98.5  # per cent of the pixels of a line have less ink than what is full

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Line:
    """A number, or what may be one.

    Attributes:
        pixels: (H, W), uint8: light ink on black.
        box: Left, upper, right and lower edge in the picture's pixels.
        row: The row that it stands in, from 0 at the top.
    """

    pixels: Pixels
    box: Box
    row: int


@dataclass(frozen=True)
class _Sign:
    """A connected part of the ink: its edges, in pixels of the ink's map."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2


def find_lines(picture: Image.Image | Pixels, height: int) -> list[Line]:
    """Find the numbers on a picture, in the order in which they are read: rows from above, each from the left.

    Args:
        picture: Of mode ``L`` or ``RGB``, upright; or (H, W) or (H, W, 3), uint8.
        height: Of the lines, in pixels.

    Returns:
        What may be numbers; nothing for an empty picture.
    """
    found = _signs(picture)
    if found is None:
        return []
    ink, signs, scale = found
    lines = []
    for number, row in enumerate(_rows(signs)):
        slope = _slope(row)
        for part in _numbers(row):
            lines.append(_cut(ink, part, slope, height, scale, number))
    return lines


def crop_line(picture: Image.Image | Pixels, height: int) -> Pixels:
    """A picture of one line, cut to its ink: (height, W), uint8, light ink on black; black where there is none."""
    found = _signs(picture)
    if found is None:
        return np.zeros((height, height), np.uint8)
    ink, signs, scale = found
    large = _large(signs)
    left, right = min(sign.left for sign in signs), max(sign.right for sign in signs)
    whole = _Sign(left, min(sign.top for sign in large), right, max(sign.bottom for sign in large))
    return _cut(ink, [whole], 0.0, height, scale, 0).pixels


def _signs(picture: Image.Image | Pixels) -> tuple[Map, list[_Sign], float] | None:
    """The ink, the connected parts of it, and how many of the picture's pixels each of its pixels spans."""
    pixels, scale = read_pixels(picture)
    seen = find_ink(pixels, SIDE)
    if seen is None:
        return None
    ink, grain = seen
    peak = peak_of(ink)
    if peak < max(FAINT, 0.5 * CLEAR * grain):
        return None
    ink = without_lines(ink, max(0.2 * peak, 3 * grain))
    parts = Parts(ink, peak, grain)
    if not parts.boxes:
        return None
    boxes = [parts.boxes[part] for part in parts.boxes if not parts.is_frame(part)]
    if not boxes:  # the picture is cut so close that its signs touch its edges
        boxes = list(parts.boxes.values())
    signs = [_Sign(left, top, right, bottom) for top, left, bottom, right in boxes]
    if peak < CLEAR * grain and len(signs) > MANY:
        return None
    return ink, signs, scale * len(pixels) / len(ink)


def _large(signs: list[_Sign]) -> list[_Sign]:
    """Those that are no dots, dashes or parts of a sign."""
    tallest = max(sign.height for sign in signs)
    return [sign for sign in signs if sign.height > LARGE * tallest]


def _rows(signs: list[_Sign]) -> list[list[_Sign]]:
    """Signs that stand side by side, however far apart: each joins the row whose last three it is most level with."""
    heights = np.array([sign.height for sign in signs])
    usual = float(np.percentile(np.repeat(heights, heights), 50))
    large = sorted((sign for sign in signs if sign.height > LARGE * usual), key=lambda sign: sign.left)
    rows: list[list[_Sign]] = []
    for sign in large:
        best: tuple[float, list[_Sign] | None] = (math.inf, None)
        for row in rows:
            top, bottom = np.median([(one.top, one.bottom) for one in row[-3:]], axis=0).tolist()
            shared = min(sign.bottom, bottom) - max(sign.top, top)
            away = abs(sign.middle - (top + bottom) / 2)
            if shared > 0.4 * min(sign.height, bottom - top) and away < best[0]:
                best = (away, row)
        if best[1] is None:
            rows.append([sign])
        else:
            best[1].append(sign)
    small = [sign for sign in signs if sign.height <= LARGE * usual]
    for sign in small:  # dots, dashes, the bar of a 5: of the row that it lies in
        for row in rows:
            near = min(row, key=lambda one: abs(one.left - sign.left))
            if near.top - 0.3 * near.height < sign.middle < near.bottom + 0.3 * near.height:
                row.append(sign)
                break
    return sorted(
        (sorted(row, key=lambda one: one.left) for row in rows),
        key=lambda row: float(np.mean([sign.middle for sign in row])),
    )


def _slope(row: list[_Sign]) -> float:
    """How far a row falls from pixel to pixel; 0 for a short one."""
    large = _large(row)
    x = np.array([(sign.left + sign.right) / 2 for sign in large])
    if len(large) < 4 or x.max() - x.min() < 3 * max(sign.height for sign in large):
        return 0.0
    return float(np.polyfit(x, [sign.middle for sign in large], 1)[0])


def _numbers(row: list[_Sign]) -> list[list[_Sign]]:
    """Cut a row where its signs are wide apart."""
    usual = float(np.median([sign.height for sign in _large(row)]))
    numbers = [[row[0]]]
    right = row[0].right
    for sign in row[1:]:
        if sign.left - right > APART * usual:
            numbers.append([])
        numbers[-1].append(sign)
        right = max(right, sign.right)
    return [number for number in numbers if max(sign.height for sign in number) > LARGE * usual]


def _cut(ink: Map, signs: list[_Sign], slope: float, height: int, scale: float, row: int) -> Line:
    """Cut a line out, straightened."""
    left, right = min(sign.left for sign in signs), max(sign.right for sign in signs)
    middle = (left + right) / 2
    drop = [slope * ((sign.left + sign.right) / 2 - middle) for sign in signs]
    top = min(sign.top - fall for sign, fall in zip(signs, drop, strict=True))
    bottom = max(sign.bottom - fall for sign, fall in zip(signs, drop, strict=True))
    margin = MARGIN * (bottom - top)
    top, bottom = top - margin, bottom + margin
    side = 2 * margin
    zoom = (bottom - top) / height
    width = max(round((right - left + 2 * side) / zoom), 8)
    # What the window and its slope may need, and black where that lies outside of the picture.
    reach = math.ceil(side + abs(slope) * (right - left) / 2) + 2
    x0, y0 = max(0, left - reach), max(0, math.floor(top) - reach)
    part = ink[y0 : math.ceil(bottom) + reach, x0 : right + reach]
    inner = ink[max(0, math.floor(top)) : math.ceil(bottom), max(0, left) : right]
    full = max(float(np.percentile(inner, FULL)), 1.0)
    image: Any = Image.fromarray(np.pad((255 * part / full).clip(0, 255).astype(np.uint8), reach))
    if slope:
        image = image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, slope, 1, -slope * (middle - x0 + reach)))
    x, y = left - side - x0 + reach, top - y0 + reach
    window = (max(x, 0), max(y, 0), min(x + width * zoom, image.width), min(y + bottom - top, image.height))

    def shrink(whole: Image.Image) -> Pixels:
        return np.asarray(whole.resize((width, height), Image.Resampling.BILINEAR, box=window))

    pixels = shrink(image)
    if pixels.max() < 128:  # strokes so thin that they fade are widened
        pixels = shrink(Image.fromarray(ndimage.maximum_filter(np.asarray(image), 2 * math.ceil(zoom / 2) + 1)))
    edges = (math.floor(left * scale), math.floor((top + margin) * scale), math.ceil(right * scale))
    return Line(pixels, (*edges, math.ceil((bottom - margin) * scale)), row)
