"""Draw handwriting by program: digits in the ways that people write them, and strokes that are no digit."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from scipy.interpolate import make_interp_spline

Pixels = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

TIMES = 4  # drawn at this many times the size, then reduced
# Strokes as a pen makes them, in points "xy" from 0 to 9, x to the right and y down. A point that stands twice is a
# corner; between corners the pen follows a smooth curve. Each digit has the forms that are taught in some country.
DIGITS: list[list[str]] = [
    ["50 12 05 28 59 87 94 81 50", "60 22 06 38 69 87 83 60 40"],
    [
        "50 59",
        "23 50 50 59",
        "05 50 50 59",
        "14 60 60 49",
        "41 60 60 59",
        "23 50 50 59|29 79",
        "05 50 50 59|29 89",
    ],
    [
        "12 30 60 82 74 19 19 89",
        "12 30 60 82 65 28 08 17 48 89",
        "11 40 81 74 09 09 99",
        "02 30 71 75 29 18 58 99",
    ],
    ["11 40 71 73 44 44 75 87 69 38 08", "00 80 80 44 44 75 87 69 38 08", "11 50 81 54 54 85 88 49 08"],
    [
        "20 05 05 95|62 69",
        "60 06 06 96|60 69",
        "69 60 60 06 06 96",
        "10 05 05 85|70 59",
        "00 05 05 95|90 99",
        "40 06 06 96|64 69",
    ],
    ["80 20 20 14 14 43 75 87 59 18", "20 14 14 43 75 87 59 18|20 90", "70 31 13 44 75 77 49 18"],
    ["70 33 06 28 59 87 75 54 26", "40 13 07 39 79 86 64 25 17", "90 42 16 28 59 86 64 36 18"],
    [
        "00 90 90 39",
        "00 90 90 49|24 84",
        "02 00 00 90 90 49",
        "02 00 00 90 90 39|15 75",
        "01 20 61 90 90 55 49",
        "00 90 90 29|24 84",
        "01 20 61 90 90 39|15 85",
    ],
    ["71 40 22 44 76 69 39 17 35 63 71", "50 22 54 72 50|54 16 59 86 54", "81 50 31 33 65 78 59 28 36 74 81"],
    ["82 50 12 35 73 82 82 79", "82 50 12 35 73 82 77 59 28", "81 40 12 35 72 81 81 49", "70 22 34 72 70 70 79"],
]
# Forms that are seldom written alone, but often in numbers that are written fast: 5s like a tick, 9s like a P, 1s from
# the line up, 2s that begin with a loop, 7s like a cross, 4s that stay open, 0s that go on to the next digit.
HURRIED: list[list[str]] = [
    ["60 20 05 29 69 86 62 40 62 80", "40 06 39 78 83 50 40 52 91", "50 12 05 28 59 87 94 81 50 90"],
    ["08 50 50 59", "06 60 60 49", "18 40 40 39", "09 70 70 69", "08 50 50 59|39 79"],
    [
        "33 14 11 40 71 64 18 18 88",
        "24 33 12 20 61 73 28 08 17 48 99",
        "03 30 60 63 27 09 09 99",
        "25 34 24 02 30 71 64 28 08 08 88",
        "35 25 12 40 71 64 27 09 37 59 97",
    ],
    ["10 60 44 75 58 28 07", "02 20 60 73 44 44 75 68 29 07"],
    ["10 05 65|72 49", "30 05 05 95|64 49", "20 06 86|55 49", "00 04 34 60|60 59", "40 05 55|55 48"],
    ["03 28 28 90", "12 27 19 19 80", "13 37 28 08|13 80", "04 29 29 80", "11 13 46 38 08|11 80"],
    ["60 24 07 29 69 77 55 26", "81 33 07 39 79 86 54 17"],
    ["03 30 80 80 39|25 85", "02 11 80 49|24 85", "03 20 70 70 39|15 75", "31 50 60 60 39|15 85", "41 60 60 39|05 95"],
    ["80 40 13 45 77 59 27 45 72", "70 40 22 44 76 69 39 17 35 64 82"],
    ["40 32 29|31 60 82 74 44 33", "81 50 23 34 64 82 71 39", "30 29|30 60 81 73 33", "70 30 14 44 73 60 49"],
]
# Letters and signs that no digit looks like.
OTHERS = [
    "09 50 50 99|25 75",
    "00 09|00 71 73 04 04 85 88 09",
    "81 40 05 49 88",
    "00 09|00 83 86 09",
    "90 00 00 09 09 99|04 74",
    "90 00 00 09|04 74",
    "81 40 05 49 88 85 85 55",
    "00 09|90 99|04 94",
    "70 77 59 18",
    "00 09|80 05 05 99",
    "00 09 09 89",
    "09 00 00 45 45 90 90 99",
    "09 00 00 99 99 90",
    "00 09|00 70 83 65 05",
    "50 12 05 28 59 87 94 81 50|66 99",
    "00 09|00 70 83 65 05 05 99",
    "00 90|50 59",
    "00 07 49 97 90",
    "00 49 49 90",
    "00 29 29 53 53 79 79 90",
    "00 99|90 09",
    "00 45|90 45 45 49",
    "82 50 15 49 86|80 88 99",
    "05 95 95 61 22 17 49 88",
    "81 50 49|14 74",
    "00 09|05 43 85 89",
    "02 09|04 22 44 49|44 62 84 89",
    "02 09|04 42 84 89",
    "02 09|04 42 72",
    "50 57 79|13 83",
    "01 07 48 86 81 81 89",
    "00 45|90 19",
    "05 95",
    "04 23 46 63 84 95",
    "50 09 09 99 99 50",
    "00 09 09 99 99 90 90 00",
    "50 05 05 59 59 95 95 50",
    "52 20 03 59 93 70 52",
    "50 29 29 93 93 13 13 79 79 50",
    "55 54 64 66 36 33 73 78 17 12 50",
    "00 39 39 60 60 99",
    "20 29|70 79|03 93|06 96",
    "50 59|05 95",
    "03 93|06 96",
    "80 04 04 89",
    "10 85 85 19",
    "09 50 50 99",
    "05 36 36 90",
    "05 95|71 95 95 79",
    "52 12 05 28 59 87 94 81 52|33 34|63 64|37 58 77",
    "00 99|90 09|50 59|05 95",
    "07 17 20 27 47 50 57 77",
]


@lru_cache
def curves(strokes: str) -> list[Points]:
    """The strokes as dense points, (M, 2) each, in the units of the text."""
    drawn = []
    for stroke in strokes.split("|"):
        points = np.array([[int(point[0]), int(point[1])] for point in stroke.split()], dtype=np.float64)
        corners = np.flatnonzero((points[1:] == points[:-1]).all(axis=1)) + 1
        drawn.append(np.concatenate([_smooth(part) for part in np.split(points, corners)]))
    return drawn


def _smooth(points: Points) -> Points:
    if len(points) < 2:
        return points
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    degree = min(3, len(points) - 1)
    dense: Points = make_interp_spline(along, points, k=degree)(np.linspace(0, along[-1], 6 * len(points)))
    return dense


def write(strokes: Sequence[Points], generator: np.random.Generator, size: int, extent: float, pen: float) -> Pixels:
    """Draw strokes as a hand would that never draws twice the same.

    Args:
        strokes: Points of each stroke, (M, 2).
        generator: What the hand does is drawn from it.
        size: Side of the image, in pixels.
        extent: Longer side of what is drawn, as a share of the side.
        pen: Its width, as a share of the side.

    Returns:
        (size, size), uint8: light ink on black, its centre of mass in the middle, as in MNIST.
    """
    angle, slant = generator.uniform(-0.15, 0.15), generator.normal(0, 0.2)
    width = generator.uniform(0.45, 0.95)
    cos, sin = np.cos(angle), np.sin(angle)
    shape = np.array([[cos, -sin], [sin, cos]]) @ np.array([[width, -slant], [0, 1]])
    phases, waves = generator.uniform(0, 2 * np.pi, (2, 2)), generator.uniform(0.3, 0.9, (2, 2))
    moved = []
    for points in strokes:
        wobble = 0.35 * np.sin(points @ waves + phases[0]) + 0.2 * np.sin(2 * points @ waves.T + phases[1])
        moved.append((points + wobble + generator.normal(0, 0.3, 2)) @ shape.T)
    every = np.concatenate(moved)
    low, high = every.min(axis=0), every.max(axis=0)
    side = size * TIMES
    zoom = max(extent - pen, 0.1) * side / max((high - low).max(), 1e-6)
    image = Image.new("L", (side, side))
    brush = ImageDraw.Draw(image)
    radius = pen * side / 2
    for points in moved:
        placed = (points - (low + high) / 2) * zoom + side / 2
        draw_stroke(brush, placed, radius)
    return _centred(image, size)


def draw_stroke(brush: ImageDraw.ImageDraw, points: Points, radius: float) -> None:
    """Draw a stroke with round ends through (M, 2) points, in pixels."""
    brush.line([(x, y) for x, y in points], fill=255, width=max(1, round(2 * radius)), joint="curve")
    for x, y in (points[0], points[-1]):
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)


def _centred(image: Image.Image, size: int) -> Pixels:
    """Reduced, with the centre of mass in the middle."""
    ink = np.asarray(image, dtype=np.float64)
    total = max(ink.sum(), 1)
    y, x = (float((ink.sum(axis=axis) * (np.arange(len(ink)) + 0.5)).sum() / total) for axis in (1, 0))
    half = len(ink) / 2
    shifted = image.transform(image.size, Image.Transform.AFFINE, (1, 0, x - half, 0, 1, y - half))
    return np.asarray(shifted.resize((size, size), Image.Resampling.BOX))


def draw_digits(
    generator: np.random.Generator,
    count: int,
    size: int,
    extent: float,
    pens: Points,
    forms: list[list[str]] = DIGITS,
) -> tuple[Pixels, Labels]:
    """Draw each digit equally often, in all its forms.

    Args:
        generator: What all is drawn from.
        count: N, how many.
        size: Side of the images, in pixels.
        extent: As for ``write``.
        pens: (P,), float64: widths to choose from, as shares of the side.
        forms: The strokes of each form of each digit.

    Returns:
        (N, size, size), uint8, and (N,), int64: the digits.
    """
    labels = np.arange(count) % 10
    chosen = [_choice(generator, forms[label]) for label in labels]
    images = [write(curves(form), generator, size, extent, generator.choice(pens)) for form in chosen]
    return np.array(images, np.uint8).reshape(count, size, size), labels


def draw_others(generator: np.random.Generator, count: int, size: int, extent: float, pens: Points) -> Pixels:
    """Draw letters and signs, scribbles and numbers of several digits; the arguments are those of ``draw_digits``.

    Returns:
        (N, size, size), uint8.
    """
    kinds = [_other, _other, _scribble, _number]
    images = [
        write(kinds[number % 4](generator), generator, size, extent, generator.choice(pens)) for number in range(count)
    ]
    return np.array(images, np.uint8).reshape(count, size, size)


def _choice(generator: np.random.Generator, forms: list[str]) -> str:
    return forms[generator.integers(len(forms))]


def _other(generator: np.random.Generator) -> list[Points]:
    return curves(_choice(generator, OTHERS))


def _scribble(generator: np.random.Generator) -> list[Points]:
    counts = generator.integers(5, 10, generator.integers(1, 4))
    return [_smooth(generator.uniform(0, 9, (count, 2))) for count in counts]


def _number(generator: np.random.Generator) -> list[Points]:
    drawn, left = list[Points](), 0.0
    for _ in range(generator.choice([2, 2, 3])):
        form = curves(_choice(generator, DIGITS[generator.integers(10)]))
        drawn += [points + np.array([left, generator.normal(0, 1)]) for points in form]
        left += max(points[:, 0].max() for points in form) + generator.uniform(-1, 2.5)
    return drawn


def draw_blots(generator: np.random.Generator, count: int, size: int) -> Pixels:
    """(N, size, size), uint8: what is left of photographs, noise of all scales with a threshold."""
    images = []
    away = np.hypot(*(np.mgrid[:size, :size] - size / 2)) / size
    for _ in range(count):
        noise = ndimage.gaussian_filter(generator.standard_normal((size, size)), generator.uniform(0.8, 3.5))
        noise -= np.quantile(noise, generator.uniform(0.4, 0.9))
        ink = np.clip(noise / (np.abs(noise).max() * generator.uniform(0.02, 0.3)), 0, 1)
        images.append((255 * np.where(away > generator.uniform(0.3, 0.55), 0, ink)).astype(np.uint8))
    return np.array(images, np.uint8).reshape(count, size, size)


def printed(characters: str, size: int) -> list[tuple[str, Pixels]]:
    """Characters in each of Matplotlib's fonts: the character, and (H, W), uint8, light ink on black.

    Args:
        characters: Which.
        size: Of the font, in pixels.
    """
    found = []
    for path in sorted((Path(matplotlib.get_data_path()) / "fonts" / "ttf").glob("*.ttf")):
        if re.search("cmex|cmsy|cmmi|LastResort|NonUni|Siz|Display", path.stem):  # signs of formulas
            continue
        font = ImageFont.truetype(str(path), size)
        for character in characters:
            left, top, right, bottom = font.getbbox(character)
            image = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8))
            ImageDraw.Draw(image).text((4 - left, 4 - top), character, font=font, fill=255)
            found.append((character, np.asarray(image)))
    return found
