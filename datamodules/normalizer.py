"""Any picture of a digit -> an image as the collection's: its ground, size, place and stroke width."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from datamodules.images import to_pixels
from datamodules.ink import (
    CANVAS,
    FAINT,
    SIDE,
    Map,
    Mask,
    Parts,
    Pixels,
    find_ink,
    ground_level,
    peak_of,
    read_pixels,
    without_lines,
)

Range = tuple[float, float, float]

SAMPLE = 2000  # images that are measured: their extremes tell what is usual


@dataclass(frozen=True)
class Normalized:
    """What was found in a picture.

    Attributes:
        image: (size, size) or (size, size, 3), uint8, as the training images; None where nothing was found.
        box: Left, upper, right and lower edge of the digit in the picture's pixels; None where nothing was found.
        digits: Separate digits that were seen; ``image`` shows the one with most ink.
        reason: Why nothing was found; None where something was.
    """

    image: Pixels | None
    box: tuple[int, int, int, int] | None
    digits: int
    reason: str | None = None


@dataclass(frozen=True)
class DigitNormalizer:
    """Brings pictures of a digit into the form of the images that a network was trained on.

    The steps are those by which MNIST was made of scanned forms (LeCun et al. 1998,
    http://yann.lecun.com/exdb/publis/pdf/lecun-98.pdf, section III.A), and before them the search for the ink.
    The state is plain numbers. A range has the least, the middle and the largest usual value, as shares of the side.

    Attributes:
        size: Side of the images, in pixels.
        ground: Grey level of the ground, 0 to 255.
        ink: Grey level of the ink, 0 to 255.
        contrast: Range of an image's strongest ink, as a share of ``ink`` less ``ground``.
        extent: Range of the longer side of the ink's box.
        stroke: Range of the stroke width.
        half: The stroke widths between which half of the images lie.
        soft: Range of the share of the ink that is between ground and ink: a pen drawn pixel by pixel has none.
        centre_y: Range of the centre, from above.
        centre_x: Range of the centre, from the left.
        by_mass: The centre is the ink's centre of mass; if not, the middle of its box.
        stretched: Both sides of the box are ``extent`` long.
        colours: Red, green and blue of the ground, and then of the ink; None where both are grey.
    """

    size: int
    ground: int
    ink: int
    contrast: Range
    extent: Range
    stroke: Range
    half: tuple[float, float]
    soft: Range
    centre_y: Range
    centre_x: Range
    by_mass: bool
    stretched: bool
    colours: tuple[int, ...] | None = None

    @classmethod
    def fit(cls, pixels: Pixels, rows: npt.NDArray[np.int64] | None = None) -> "DigitNormalizer | None":
        """Learn how digits lie in a collection.

        Args:
            pixels: (N, C, S, S), uint8; may be mapped from a file. ``SAMPLE`` are measured, fewer of large ones.
            rows: (M,), int64: the images that count; None is all.

        Returns:
            None where the images are not strokes on an even ground, as photographs.
        """
        count = math.ceil(SAMPLE * min(1, CANVAS / pixels.shape[-1]) ** 2)
        rows = np.random.default_rng(0).permutation(np.arange(len(pixels)) if rows is None else rows)[:count]
        modes, extremes = [], []
        for row in rows:
            image = as_grey(pixels[row])
            modes.append(ground_level(image)[0])
            extremes.append((image.min(), image.max()))
        levels = np.array(modes)
        light_ink = bool(np.median(levels) < 128)
        ground = int(np.median(levels[(levels < 128) == light_ink]))
        ink = int(np.median(np.array(extremes)[:, int(light_ink)]))
        if abs(ink - ground) < 64:
            return None
        even, measured = 0, []
        for row in rows:
            share = (as_grey(pixels[row]) - np.float32(ground)) / np.float32(ink - ground)
            even += bool((np.abs(share) < 0.1).mean() > 0.3)
            measures = _measure(share)
            if measures is not None:
                measured.append(measures)
        if even < 0.9 * len(rows) or not measured:
            return None
        found = np.array(measured)
        height, width, box_y, box_x, mass_y, mass_x, stroke, contrast, soft = found.T
        extent = np.maximum(height, width)
        if np.median(stroke / extent) > 0.4:
            return None
        by_mass = bool(np.std(mass_y) + np.std(mass_x) < np.std(box_y) + np.std(box_x))
        return cls(
            size=pixels.shape[-1],
            ground=ground,
            ink=ink,
            contrast=_usual(contrast),
            extent=_usual(extent),
            stroke=_usual(stroke),
            half=(float(np.percentile(stroke, 25)), float(np.percentile(stroke, 75))),
            soft=_usual(soft),
            centre_y=_usual(mass_y if by_mass else box_y),
            centre_x=_usual(mass_x if by_mass else box_x),
            by_mass=by_mass,
            stretched=bool(np.percentile(np.minimum(height, width), 10) > 0.9 * np.median(extent)),
            colours=None if pixels.shape[1] == 1 else _colours([pixels[row] for row in rows], light_ink),
        )

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON has it."""
        state = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in state.items()}

    def __str__(self) -> str:
        kind = "light on dark" if self.ink > self.ground else "dark on light"
        where = "centre of mass" if self.by_mass else "middle"
        return (
            f"{kind}, {self.extent[1]:.0%} of the side long, their {where} at {self.centre_x[1]:.0%} and "
            f"{self.centre_y[1]:.0%} of it, strokes {self.half[0]:.0%} to {self.half[1]:.0%} wide"
        )

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> "DigitNormalizer":
        """What ``to_dict`` was called on."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in state.items()
        }
        return cls(**values)

    def transform(self, picture: Image.Image | Pixels) -> Normalized:
        """Find the digit and bring it into the training images' form; the same bits for the same pixels.

        Args:
            picture: Of mode ``L`` or ``RGB``, upright, as ``read_image`` gives it; or (H, W) or (H, W, 3), uint8.
        """
        pixels, scale = read_pixels(picture)
        seen = find_ink(pixels)
        found = None if seen is None else _find(*seen, math.ceil(len(seen[0]) / len(pixels)))
        if found is None:
            return Normalized(None, None, 0, reason="no ink stands out from the ground")
        ink, mask, digits = found
        ys, xs = np.nonzero(mask)
        scale *= len(pixels) / len(ink)
        box = (
            math.floor(xs.min() * scale),
            math.floor(ys.min() * scale),
            math.ceil((xs.max() + 1) * scale),
            math.ceil((ys.max() + 1) * scale),
        )
        return Normalized(self.place(ink, mask), box, digits)

    def is_usual(self, image: Pixels) -> bool:
        """Whether (size, size), uint8, could be one of the training images."""
        ink = (image - np.float32(self.ground)) / np.float32(self.ink - self.ground)
        measures = _measure(ink)
        if measures is None or (np.abs(ink) < 0.1).mean() < 0.3:
            return False
        height, width, box_y, box_x, mass_y, mass_x, stroke, contrast, soft = measures
        y, x = (mass_y, mass_x) if self.by_mass else (box_y, box_x)
        ranges = (self.extent, self.stroke, self.centre_y, self.centre_x, self.contrast, self.soft)
        values = (max(height, width), stroke, y, x, contrast, soft)
        return all(low <= value <= high for value, (low, _, high) in zip(values, ranges, strict=True))

    def place(self, ink: Map, mask: Mask) -> Pixels:
        """Draw a digit as the training images have it.

        Args:
            ink: (H, W), float32: 0 for ground, larger for ink.
            mask: (H, W), bool: where the digit is.

        Returns:
            (size, size), uint8; (size, size, 3) where the training images have colours.
        """
        ys, xs = np.nonzero(mask)
        top, left, bottom, right = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
        height, width = int(bottom - top), int(right - left)
        # The canvas has the digit about as large as the training images have it where those are enlarged.
        side = 2 * CANVAS * self.extent[1]
        zoom = side / max(height, width)
        margin = math.ceil(0.25 * max(height, width)) + 1
        part = np.pad(np.where(mask, ink, 0), margin)[top : bottom + 2 * margin, left : right + 2 * margin]
        # Each stroke has its own full ink: the faint side of a 0 is as wide as its dark one.
        reach = 2 * (max(height, width) // 16) + 1
        local = ndimage.uniform_filter(ndimage.maximum_filter(part, reach), reach)
        part = np.where(part > 0, part / np.maximum(local, 1e-6), 0).astype(np.float32)
        shape = (round(part.shape[1] * zoom), round(part.shape[0] * zoom))
        canvas = _shrink(part, shape)
        if canvas.sum() < 0.5 * mask.sum() * zoom**2:  # strokes too thin for the canvas are widened
            canvas = _shrink(ndimage.maximum_filter(part, 2 * math.ceil(0.5 / zoom) + 1), shape)
        inside = ndimage.distance_transform_edt(canvas)
        distance = np.where(canvas, inside - 0.5, 0.5 - ndimage.distance_transform_edt(~canvas))
        # Wider by d on each side, a stroke of width t in a box of length l becomes t + 2d in l + 2d.
        stroke = _width(inside)
        thin, thick = (usual / self.extent[1] for usual in self.half)
        ratio = min(max(stroke / side, thin), thick)
        grow = (ratio * side - stroke) / (2 * (1 - ratio))
        ridge = inside[canvas & (inside == ndimage.maximum_filter(inside, 3))]
        grow = max(grow, -0.5 * float(np.percentile(ridge, 10)))  # the thin parts of a thick digit stay
        drawn = np.clip(distance + grow + 0.5, 0, 1).astype(np.float32)
        ys, xs = np.nonzero(drawn > 0.5)
        top, left, bottom, right = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
        zoom_y = zoom_x = max(bottom - top, right - left) / (self.extent[1] * self.size)  # canvas pixels to a pixel
        if self.stretched:
            zoom_y, zoom_x = (
                (bottom - top) / (self.extent[1] * self.size),
                (right - left) / (self.extent[1] * self.size),
            )
        if self.by_mass:
            total = float(drawn.sum(dtype=np.float64))
            y = float(drawn.sum(axis=1, dtype=np.float64) @ (np.arange(len(drawn)) + 0.5)) / total
            x = float(drawn.sum(axis=0, dtype=np.float64) @ (np.arange(drawn.shape[1]) + 0.5)) / total
        else:
            y, x = (top + bottom) / 2, (left + right) / 2
        upper, leftmost = y - self.centre_y[1] * self.size * zoom_y, x - self.centre_x[1] * self.size * zoom_x
        pad = math.ceil(self.size * max(zoom_y, zoom_x))
        window = (leftmost + pad, upper + pad, leftmost + pad + self.size * zoom_x, upper + pad + self.size * zoom_y)
        small = Image.fromarray(np.pad(drawn, pad)).resize((self.size,) * 2, Image.Resampling.BILINEAR, box=window)
        share = np.asarray(small, dtype=np.float32).clip(0, 1)
        ground, ink = np.array(self.colours or (self.ground, self.ink), np.float32).reshape(2, -1)
        pixels: Pixels = (ground + share[..., None] * (ink - ground)).round().astype(np.uint8)
        return pixels[..., 0] if self.colours is None else pixels


@dataclass(frozen=True)
class Seen:
    """A picture as a network takes it.

    Attributes:
        pixels: (C, size, size), uint8.
        box: What they show of the picture: left, upper, right and lower edge in its pixels.
        digits: Separate digits on the picture; 0 where nothing is on it, and the whole picture is in ``pixels``.
    """

    pixels: Pixels
    box: tuple[int, int, int, int]
    digits: int = 1


def normalize(image: Image.Image, size: int, channels: int, normalizer: DigitNormalizer | None) -> Seen:
    """A picture as a network takes it: the one way from a picture that was read to the pixels of its digit.

    A picture that, resized as the training images were, lies as they do is left as it is.

    Args:
        image: Of mode ``RGB`` or ``L``, upright.
        size: Side of the network's images, in pixels.
        channels: 1 for grey, 3 for colour.
        normalizer: How the training images lie; None where that can't be told: the picture is resized, no more.

    """
    mode = "L" if channels == 1 else "RGB"
    resized = to_pixels(image.convert(mode), size)
    whole = (0, 0, *image.size)
    if normalizer is None or normalizer.is_usual(as_grey(resized)):
        return Seen(resized, whole)
    found = normalizer.transform(image)
    if found.image is None or found.box is None:
        return Seen(resized, whole, digits=0)
    return Seen(to_pixels(Image.fromarray(found.image).convert(mode), size), found.box, found.digits)


def max_side(normalizer: DigitNormalizer | None) -> int | None:
    """The longer side, in pixels, beyond which nothing more of a picture is seen; None where all of it is."""
    return None if normalizer is None else SIDE


def as_grey(pixels: Pixels) -> Pixels:
    """(1 or 3, H, W), uint8 -> (H, W), uint8: ITU-R 601-2 luma."""
    return pixels[0] if len(pixels) == 1 else np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).convert("L"))


def _colours(images: Sequence[Pixels], light_ink: bool) -> tuple[int, ...] | None:
    """The usual colour of the ground of (3, S, S) images, and that of their strongest ink; None if both are grey."""
    grounds, inks = [], []
    for image in images:
        grey = as_grey(image)
        strongest = grey.argmax() if light_ink else grey.argmin()
        grounds.append([ground_level(channel)[0] for channel in image])
        inks.append(image.reshape(3, -1)[:, strongest])
    usual = np.median([grounds, inks], axis=1).astype(int)
    return tuple(usual.ravel().tolist()) if np.ptp(usual, axis=1).any() else None


def _shrink(part: Map, size: tuple[int, int]) -> Mask:
    """Where there is ink, (H, W), in [0, 1], on a canvas of another width and height."""
    return np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BICUBIC)) > 0.5


def _width(inside: npt.NDArray[np.float64]) -> float:
    """Mean stroke width, from each ink pixel's distance to the ground: a stroke's mean is a quarter of its width."""
    return 4 * float(inside[inside > 0].mean()) - 2


def _measure(ink: Map) -> tuple[float, ...] | None:
    """Height, width, middle of the box, centre of mass, stroke width, contrast and softness; None where no ink is.

    Args:
        ink: (H, H), float, 0 for ground and 1 for ink.
    """
    times = math.ceil(CANVAS / len(ink))
    contrast = float(ink.max())
    if contrast < 0.1:
        return None
    side = times * len(ink)
    large = np.asarray(Image.fromarray(np.pad(ink, 1)).resize((side + 2 * times,) * 2, Image.Resampling.BICUBIC))
    inside = ndimage.distance_transform_edt(large > 0.5 * contrast)
    ys, xs = np.nonzero(inside)
    top, left, bottom, right = ys.min(), xs.min(), ys.max() + 1, xs.max() + 1
    return (
        (bottom - top) / side,
        (right - left) / side,
        ((top + bottom) / 2 - times) / side,
        ((left + right) / 2 - times) / side,
        (ys.mean() + 0.5 - times) / side,
        (xs.mean() + 0.5 - times) / side,
        _width(inside) / side,
        contrast,
        float(((ink > 0.1 * contrast) & (ink < 0.9 * contrast)).sum() / (ink > 0.1 * contrast).sum()),
    )


def _usual(values: npt.NDArray[np.float64]) -> Range:
    """Least, middle and largest usual value: the extremes and a little more, for others were not measured."""
    low, middle, high = (float(value) for value in (values.min(), np.median(values), values.max()))
    return (low - 0.02 * (middle - low) - 0.002, middle, high + 0.02 * (high - middle) + 0.002)


def _find(ink: Map, grain: float, times: int = 1) -> tuple[Map, Mask, int] | None:
    """The ink without ruled lines, the digit's pixels and how many digits there are; None where no ink stands out.

    Two thresholds (Canny 1986, https://doi.org/10.1109/TPAMI.1986.4767851), from the ink alone: a part has some
    strong ink, and takes the weak ink that touches it.
    """
    least = FAINT * max(1, grain)
    peak = peak_of(ink)
    if peak < least:
        return None
    ink = without_lines(ink, max(0.2 * peak, 3 * grain))
    left, kept = ink.copy(), None
    for _ in range(4):
        peak = peak_of(left)
        if peak < least:
            break
        parts = Parts(left, peak, grain)
        if parts.main:
            strength = float(np.percentile(left[parts.labels == parts.main], 75))
            if strength < 0.7 * peak:  # the peak is of something else, or of one dark spot
                parts = Parts(left, strength, grain)
        if not parts.main:
            break
        is_frame = parts.is_frame(parts.main)
        if kept is None or not is_frame:
            kept = parts
        if not is_frame:
            break
        left[ndimage.binary_dilation(parts.labels == parts.main, iterations=3 + times + max(ink.shape) // 40)] = 0
    if kept is None:
        return None
    mask, bridges, digits = kept.join(times)
    return np.where(bridges, np.float32(peak), ink), mask | bridges, digits
