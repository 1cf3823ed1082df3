"""Any picture of a digit -> an image as the collection's: its ground, size, place and stroke width."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from datamodules.images import to_pixels

Pixels = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Range = tuple[float, float, float]

SAMPLE = 2000  # images that are measured: their extremes tell what is usual
WORK = 768  # longest side of the copy on which the digit is looked for, in pixels
SIDE = 2 * WORK  # that a picture need not exceed
SMALL = 192  # and of the copy that tells ground from ink
CANVAS = 112  # least side of what is measured: the strokes of an 8×8 image are wide enough there
WIDEST = 0.3  # of the picture's longer side: what is wider than this is ground, not ink
FAINT = 6.0  # grey levels and standard deviations of the grain below which nothing is ink


@dataclass(frozen=True)
class Normalized:
    """What was found in a picture.

    Attributes:
        image: (size, size), uint8, as the training images; None where nothing was found.
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
            modes.append(_mode(image)[0])
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
        )

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON has it."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

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
        pixels, scale = _read(picture)
        seen = _ink(pixels)
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
            (size, size), uint8.
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
        canvas = np.asarray(Image.fromarray(part).resize(shape, Image.Resampling.BICUBIC)) > 0.5
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
        grey: Pixels = (self.ground + share * (self.ink - self.ground)).round().astype(np.uint8)
        return grey


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


def as_grey(pixels: Pixels) -> Pixels:
    """(1 or 3, H, W), uint8 -> (H, W), uint8: ITU-R 601-2 luma."""
    return pixels[0] if len(pixels) == 1 else np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).convert("L"))


def _read(picture: Image.Image | Pixels) -> tuple[Pixels, float]:
    """(H, W, 1 or 3), uint8, of at most ``SIDE`` pixels a side, and how many of the picture's pixels each spans."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    full = max(image.size)
    if full > SIDE:
        image = image.reduce(math.ceil(full / SIDE))
    pixels = np.asarray(image)
    if pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all()):
        pixels = pixels.reshape(*pixels.shape[:2], -1)[..., :1]
    return pixels, full / max(pixels.shape[:2])


def _mode(grey: Pixels) -> tuple[int, float]:
    """The grey level about which most pixels lie, and the share of those that lie there."""
    counts = np.bincount(grey.ravel(), minlength=256)
    near = np.convolve(counts, np.ones(9, dtype=np.int64), mode="same")
    middle = int(near.argmax())
    first = max(0, middle - 4)
    return first + int(counts[first : middle + 5].argmax()), float(near[middle] / grey.size)


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


def _pool(values: Map, times: int) -> Map:
    """The mean of each block of ``times`` × ``times`` values; (H, W) -> (⌈H / times⌉, ⌈W / times⌉)."""
    if times == 1:
        return values
    padded = np.pad(values, [(0, -side % times) for side in values.shape], mode="edge")
    rows = np.add.reduceat(padded, np.arange(0, len(padded), times), axis=0)
    both = np.add.reduceat(rows, np.arange(0, rows.shape[1], times), axis=1)
    return (both / np.float32(times * times)).astype(np.float32)


def _open(light: Map, side: int, ground: float | None) -> Map:
    """What is light over at least ``side`` pixels both ways; outside lies the ground, or what lies at the border."""
    padding: dict[str, Any] = {"mode": "edge"} if ground is None else {"constant_values": ground}
    opened: Map = ndimage.grey_opening(np.pad(light, side, **padding), (side, side))
    return opened[side:-side, side:-side]


def _ink(pixels: Pixels) -> tuple[Map, float] | None:
    """How much ink there is at each place of a picture, and how much the ground's grain varies, in grey levels.

    (H, W, C), uint8 -> (h, w), float.
    """
    longest = max(pixels.shape[:2])
    modes = [_mode(pixels[..., channel]) for channel in range(pixels.shape[2])]
    tiny = longest < CANVAS
    if tiny:
        times = math.ceil(CANVAS / longest)
        size = (pixels.shape[1] * times, pixels.shape[0] * times)
        planes = [Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC) for plane in pixels.transpose(2, 0, 1)]
        pixels = np.stack([np.asarray(plane) for plane in planes], axis=2)
        longest *= times
    even = all(share > (0.25 if tiny else 0.5) for _, share in modes)  # the ink of a tiny picture may fill it
    direction = _direction(pixels, [level for level, _ in modes] if even else None)
    if direction is None:
        return None
    light = pixels.astype(np.float32) @ direction
    if longest > WORK:  # the most of four, so that a thin pen stays
        light = np.pad(light, [(0, side % 2) for side in light.shape], mode="edge")
        light = np.maximum(
            np.maximum(light[::2, ::2], light[1::2, ::2]), np.maximum(light[::2, 1::2], light[1::2, 1::2])
        )
    times = math.ceil(max(light.shape) / SMALL)
    small = _pool(light, times)
    level = float(np.dot([level for level, _ in modes], direction)) if even else None
    opened = _open(small, math.ceil(WIDEST * max(small.shape)), level)
    if times > 1:
        ground = np.asarray(
            Image.fromarray(ndimage.maximum_filter(opened, 3)).resize(
                (small.shape[1] * times, small.shape[0] * times), Image.Resampling.BILINEAR
            )
        )[: light.shape[0], : light.shape[1]]
        light = ndimage.gaussian_filter(light, 0.7)
    else:
        ground = opened
    ink = light - ground
    if not even:
        ink -= np.median(ink)
    # Between places that lie apart, for neighbours are alike; most of them are both ground.
    grain = 0.0 if tiny else 1.05 * float(np.median(np.abs(ink[:, 3:] - ink[:, :-3])))
    return ink.clip(0).astype(np.float32), grain


def _direction(pixels: Pixels, modes: list[int] | None) -> Map | None:
    """The colour of the ink less that of the ground, as a unit vector: (C,), float; None for an empty picture.

    Ink is what is thin: at the scale of its strokes it stands out, and the ground between them only at larger ones.
    """
    times = math.ceil(max(pixels.shape[:2]) / SMALL)
    h, w = (side // times * times for side in pixels.shape[:2])
    blocks = pixels[:h, :w].reshape(h // times, times, w // times, times, -1)
    best: tuple[float, Map | None] = (0.0, None)
    means = [_pool(pixels[:h, :w, channel].astype(np.float32), times) for channel in range(pixels.shape[2])]
    for sign, extreme in ((1, blocks.max(axis=1).max(axis=2)), (-1, blocks.min(axis=1).min(axis=2))):
        for channel in range(pixels.shape[2]):
            light = sign * extreme[..., channel].astype(np.float32)
            # On even ground, ink is what is not ground.
            if modes is not None and sign * float(((means[channel] - modes[channel]) ** 3).sum()) < 0:
                continue
            score = 0.0
            for share in (1 / 64, 1 / 32, 1 / 16, 1 / 8, WIDEST):
                side = max(2, round(share * max(light.shape)))
                hat = light - _open(light, side, None if modes is None else sign * float(modes[channel]))
                score += float((hat.astype(np.float64) ** 3).sum()) / share**2
            if score > best[0]:
                strong = hat > 0.5 * hat.max()
                near = ndimage.binary_dilation(strong, iterations=2)
                weight = ndimage.uniform_filter((~near).astype(np.float32), 31) + 1e-6
                found = [
                    float((mean - ndimage.uniform_filter(np.where(near, 0, mean), 31) / weight)[strong].mean())
                    for mean in means
                ]
                best = (score, np.array(found, dtype=np.float32))
    length = 0.0 if best[1] is None else float(np.linalg.norm(best[1]))
    return best[1] / np.float32(length) if best[1] is not None and length > 0 else None


def _find(ink: Map, grain: float, times: int = 1) -> tuple[Map, Mask, int] | None:
    """The ink without ruled lines, the digit's pixels and how many digits there are; None where no ink stands out.

    Two thresholds (Canny 1986, https://doi.org/10.1109/TPAMI.1986.4767851), from the ink alone: a part has some
    strong ink, and takes the weak ink that touches it.
    """
    least = FAINT * max(1, grain)
    peak = _peak(ink)
    if peak < least:
        return None
    ink = _without_lines(ink, max(0.2 * peak, 3 * grain))
    left, kept = ink.copy(), None
    for _ in range(4):
        peak = _peak(left)
        if peak < least:
            break
        parts = _Parts(left, peak, grain)
        if parts.main:
            strength = float(np.percentile(left[parts.labels == parts.main], 75))
            if strength < 0.7 * peak:  # the peak is of something else, or of one dark spot
                parts = _Parts(left, strength, grain)
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


def _peak(ink: Map) -> float:
    return float(ndimage.uniform_filter(ink, 3).max())


class _Parts:
    """The connected parts of the ink; ``main`` is the label of the one with most ink that is no frame, 0 for none."""

    def __init__(self, ink: Map, peak: float, grain: float) -> None:
        self.labels, count = ndimage.label(ink > max(0.2 * peak, 3 * grain), np.ones((3, 3)))
        self.main = 0
        if count == 0:
            return
        every = np.arange(1, count + 1)
        strong = ndimage.maximum(ink, self.labels, every) > max(0.5 * peak, 4 * grain)
        mass = ndimage.sum_labels(ink, self.labels, every)
        slices = ndimage.find_objects(self.labels)
        shown = [k for k in range(count) if strong[k] and mass[k] > 0.005 * mass[strong].max()]
        self.mass = {k + 1: float(mass[k]) for k in shown}
        # Top, left, bottom, right.
        self.boxes = {
            k + 1: (slices[k][0].start, slices[k][1].start, slices[k][0].stop, slices[k][1].stop) for k in shown
        }
        if shown:
            self.main = max(self.mass, key=lambda part: self.mass[part] * (0.02 if self.is_frame(part) else 1))

    def extent(self, part: int) -> int:
        """The longer side of a part's box."""
        top, left, bottom, right = self.boxes[part]
        return int(max(bottom - top, right - left))

    def is_frame(self, part: int) -> bool:
        """Whether a part runs along one of the picture's sides, or is a rectangle around another part."""
        top, left, bottom, right = self.boxes[part]
        shape = self.labels[top:bottom, left:right] == part
        height, width = self.labels.shape
        sides = (
            (top == 0, shape[0], width),
            (bottom == height, shape[-1], width),
            (left == 0, shape[:, 0], height),
            (right == width, shape[:, -1], height),
        )
        if min(shape.shape) < 0.03 * max(height, width) and max(shape.shape) > 0.6 * max(height, width):
            return True
        if any(touches and line.sum() > 0.35 * length for touches, line, length in sides):
            return True
        if not any(
            top < y0 and left < x0 and y1 < bottom and x1 < right and 8 * max(y1 - y0, x1 - x0) > self.extent(part)
            for y0, x0, y1, x1 in self.boxes.values()
        ):
            return False
        rim = max(1, round(0.08 * min(shape.shape)))
        return bool(shape[rim:-rim, rim:-rim].sum() < 0.25 * shape.sum())

    def join(self, times: int) -> tuple[Mask, Mask, int]:
        """The digit's parts and the bridges between them, (H, W), bool; how many digits there are."""
        group, before = {self.main}, set[int]()
        rest = {part for part in self.boxes if not self.is_frame(part)} | group
        bridges = np.zeros(self.labels.shape, dtype=bool)
        while group != before:
            before = set(group)
            top, left, bottom, right = self._around(group)
            side = max(
                bottom - top,
                right - left,
                *(self.extent(part) for part in rest if self.mass[part] > 0.2 * self.mass[self.main]),
            )
            # A pen that lifts or runs dry leaves a gap that is short beside the digit.
            reach = max(times, round(0.06 * side))
            window = tuple(
                slice(max(0, low - 3 * reach), high + 3 * reach) for low, high in ((top, bottom), (left, right))
            )
            labels = np.where(np.isin(self.labels[window], list(rest)), self.labels[window], 0)
            wide = np.pad(ndimage.maximum_filter(labels > 0, 2 * reach + 1), reach, mode="edge")
            near, _ = ndimage.label(wide[reach:-reach, reach:-reach], np.ones((3, 3)))
            group |= set(labels[np.isin(near, near[np.isin(labels, list(group))]) & (labels > 0)].tolist())
            # The bar of a 5 lies higher above it.
            for part in rest - group:
                y0, x0, y1, x1 = self.boxes[part]
                overlap = min(x1, right) - max(x0, left)
                shared = min(y1, bottom) - max(y0, top)
                inside = (
                    overlap > 0
                    and shared > 0
                    and overlap * shared > 0.25 * min((x1 - x0) * (y1 - y0), (right - left) * (bottom - top))
                )
                if inside or (
                    y1 - y0 < 0.6 * side and overlap > 0.5 * min(x1 - x0, right - left) and shared > -0.25 * side
                ):
                    group.add(part)
            closed = ndimage.minimum_filter(wide, 2 * reach + 1)[reach:-reach, reach:-reach] & (labels == 0)
            gaps, count = ndimage.label(closed, np.ones((3, 3)))
            around = np.where(np.isin(labels, list(group)), labels, 0)
            most = ndimage.maximum_filter(around, 3)
            least = -ndimage.maximum_filter(np.where(around > 0, -around, -(2**30)), 3)
            several = [
                gap
                for gap in range(1, count + 1)
                if 0
                < ndimage.minimum(np.where(least == 2**30, 2**30, least), gaps, gap)
                < ndimage.maximum(most, gaps, gap)
            ]
            bridges[window] |= np.isin(gaps, several)
        top, left, bottom, right = self._around(group)
        mass = sum(self.mass[part] for part in group)
        others = 0
        for part in rest - group:
            y0, x0, y1, x1 = self.boxes[part]
            others += y1 - y0 > 0.5 * (bottom - top) and self.mass[part] > 0.2 * mass
        return np.isin(self.labels, list(group)), bridges, 1 + others

    def _around(self, parts: set[int]) -> tuple[int, int, int, int]:
        boxes = np.array([self.boxes[part] for part in parts])
        (top, left), (bottom, right) = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
        return top, left, bottom, right


def _without_lines(ink: Map, threshold: float) -> Map:
    """Take off thin straight lines from border to border, as of ruled paper, but for the strokes across them."""
    return _without_rows(_without_rows(ink, threshold).T, threshold).T


def _without_rows(ink: Map, threshold: float) -> Map:
    """Take off the lines that go from left to right, tilted by at most 9°: each fills a sheared row."""
    cell = math.ceil(max(ink.shape) / 256)
    mask = ink > threshold
    h, w = (side // cell for side in ink.shape)
    coarse = mask[: h * cell, : w * cell].reshape(h, cell, w, cell).any(axis=(1, 3))
    ink = ink.copy()
    for _ in range(8):
        ys, xs = np.nonzero(coarse)
        best: tuple[float, float, npt.NDArray[np.int64]] = (0, 0, np.zeros(0, dtype=np.int64))
        for tilt in np.arange(-20, 21) / 128:
            counts = np.bincount(np.round(ys - tilt * xs).astype(np.int64) + w, minlength=h + 2 * w)
            lines = np.flatnonzero(counts > 0.4 * w)
            if len(lines) < 3:
                lines = np.flatnonzero(counts > 0.9 * w)
            score = float((counts[lines].astype(np.float64) ** 2).sum())
            if score > best[0]:
                best = (score, float(tilt), lines - w)
        _, tilt, lines = best
        if len(lines) == 0:
            break
        y, x = np.arange(len(ink))[:, None], np.arange(ink.shape[1])
        cy, cx = np.arange(h)[:, None], np.arange(w)
        bands = np.split(lines, np.flatnonzero(np.diff(lines) > 1) + 1)
        for rows in bands:
            coarse &= np.abs(cy - tilt * cx - rows.mean()) > len(rows) / 2 + 1
            if len(rows) > 0.012 * max(coarse.shape):
                continue
            band: Mask = np.abs((y - tilt * x) / cell - rows.mean() - 0.5) <= len(rows) / 2 + 1
            thick = int(np.median((mask & band).sum(axis=0)))
            opened = ndimage.grey_opening(ink, (thick + 3, 1))
            ink[band] = opened[band]
    return ink
