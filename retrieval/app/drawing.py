"""Bring a drawing to the form that a collection's images of digits have."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image

Ink = npt.NDArray[np.float32]

FAINT = 0.25  # ink below this share of the darkest is the edge of a stroke, or grain
UNEVEN = 8.0  # grey levels by which the border departs from the ground
SAMPLE = 1000  # images that a style is measured on


@dataclass(frozen=True)
class DrawingStyle:
    """How digits lie in the images of a collection.

    MNIST's, for example, are light on dark, in a box of 20 of the 28 pixels, with the centre of mass in the middle
    (http://yann.lecun.com/exdb/mnist/).

    Attributes:
        size: Side of the images, in pixels.
        light_ink: Whether digits are lighter than what is around them.
        extent: Longer side of a digit's box, as a share of the image's, in (0, 1].
        by_mass: Whether the middle of the image is the digit's centre of mass, not that of its box.
    """

    size: int
    light_ink: bool
    extent: float
    by_mass: bool

    @classmethod
    def of(cls, pixels: npt.NDArray[np.uint8]) -> Self | None:
        """Measure it.

        Args:
            pixels: (N, C, S, S), uint8: images of a collection; a sample of them is looked at.

        Returns:
            None if the images have no even ground: they are photographs, not digits.
        """
        sample = pixels[:: -(-len(pixels) // SAMPLE)].mean(axis=1)
        # The median is not moved by digits that touch the border.
        if np.median([np.median(np.abs(_border(image) - _ground(image))) for image in sample]) > UNEVEN:
            return None
        size = sample.shape[-1]
        grounds = np.array([_ground(image) for image in sample])
        extents, box_centres, mass_centres = [], [], []
        for image, ground in zip(sample, grounds, strict=True):
            ink = np.abs(image - ground)
            if ink.max() == 0:
                continue
            box = _box(ink)
            extents.append(max(box[2] - box[0], box[3] - box[1]) / size)
            box_centres.append(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
            mass_centres.append(_mass_centre(ink))
        if not extents:
            return cls(size, bool(np.median(grounds) < 128), 1.0, False)
        spread = [float(np.var(centres, axis=0).sum()) for centres in (box_centres, mass_centres)]
        return cls(size, bool(np.median(grounds) < 128), float(np.median(extents)), spread[1] < spread[0])

    def apply(self, drawing: Image.Image) -> Image.Image | None:
        """Invert, scale and centre a drawing of any size and colours; None if there is nothing on it.

        Returns:
            (size, size), mode ``L``.
        """
        grey = np.asarray(drawing.convert("L"), np.float32)
        ink = np.abs(grey - _ground(grey))
        if ink.max() < 32:
            return None
        ink *= 255 / ink.max()
        left, top, right, bottom = _box(ink)
        cut = Image.fromarray(ink[top:bottom, left:right].astype(np.uint8))
        scale = self.extent * self.size / max(cut.size)
        sides = [max(round(side * scale), 1) for side in cut.size]
        digit = cut.resize((sides[0], sides[1]), Image.Resampling.LANCZOS)
        centre = _mass_centre(np.asarray(digit, np.float32)) if self.by_mass else (sides[0] / 2, sides[1] / 2)
        result = Image.new("L", (self.size, self.size))
        result.paste(digit, (round(self.size / 2 - centre[0]), round(self.size / 2 - centre[1])))
        pixels = np.asarray(result)
        return Image.fromarray(pixels if self.light_ink else 255 - pixels)


def _border(image: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    return np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])


def _ground(image: npt.NDArray[np.floating]) -> float:
    """What is around the digit: the median of an image's border."""
    return float(np.median(_border(image)))


def _box(ink: npt.NDArray[np.floating]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the ink that is not faint."""
    strong = ink >= FAINT * ink.max()
    across, down = np.flatnonzero(strong.any(axis=0)), np.flatnonzero(strong.any(axis=1))
    return int(across[0]), int(down[0]), int(across[-1]) + 1, int(down[-1]) + 1


def _mass_centre(ink: npt.NDArray[np.floating]) -> tuple[float, float]:
    """Across and down, in pixels from the left upper corner."""
    total = max(float(ink.sum()), 1e-6)
    places = [np.arange(side) + 0.5 for side in ink.shape]
    return float(ink.sum(axis=0) @ places[1]) / total, float(ink.sum(axis=1) @ places[0]) / total
