"""Where there is ink on a picture: told from its ground, from ruled lines and from frames."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Pixels = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

WORK = 768  # longest side of the copy on which a digit is looked for, in pixels
SIDE = 2 * WORK  # that a picture need not exceed
SMALL = 192  # longest side of the copy that tells ground from ink
CANVAS = 112  # least side of what is measured: the strokes of an 8×8 image are wide enough there
WIDEST = 0.3  # of the picture's longer side: what is wider than this is ground, not ink
FAINT = 6.0  # grey levels and standard deviations of the grain below which nothing is ink


def read_pixels(picture: Image.Image | Pixels) -> tuple[Pixels, float]:
    """(H, W, 1 or 3), uint8, of at most ``SIDE`` pixels a side, and how many of the picture's pixels each spans."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    full = max(image.size)
    if full > SIDE:
        image = image.reduce(math.ceil(full / SIDE))
    pixels = np.asarray(image)
    if pixels.ndim == 2 or bool((pixels == pixels[..., :1]).all()):
        pixels = pixels.reshape(*pixels.shape[:2], -1)[..., :1]
    return pixels, full / max(pixels.shape[:2])


def find_ink(pixels: Pixels, work: int = WORK) -> tuple[Map, float] | None:
    """How much ink there is at each place of a picture, and how much the ground's grain varies, in grey levels.

    Args:
        pixels: (H, W, C), uint8.
        work: Longest side of what is given back: larger pictures are halved.

    Returns:
        (h, w), float32, and the grain; None where nothing differs from its ground, or a picture is a mere line.
    """
    longest = max(pixels.shape[:2])
    if min(pixels.shape[:2]) < math.ceil(longest / SMALL):
        return None
    modes = [ground_level(pixels[..., channel]) for channel in range(pixels.shape[2])]
    tiny = longest < CANVAS
    if tiny:
        times = math.ceil(CANVAS / longest)
        size = (pixels.shape[1] * times, pixels.shape[0] * times)
        planes = [Image.fromarray(plane).resize(size, Image.Resampling.BICUBIC) for plane in pixels.transpose(2, 0, 1)]
        pixels = np.stack([np.asarray(plane) for plane in planes], axis=2)
        longest *= times
    even = all(share > (0.25 if tiny else 0.5) for _, share in modes)  # the ink of a tiny picture may fill it
    if not tiny and even:
        even = not _is_shaded(pixels, [level for level, _ in modes])
    direction = _direction(pixels, [level for level, _ in modes] if even else None)
    if direction is None:
        return None
    light = pixels.astype(np.float32) @ direction
    if longest > work:  # the most of four, so that a thin pen stays
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
    apart = np.abs(ink[:, 3:] - ink[:, :-3])
    grain = 0.0 if tiny or apart.size == 0 else 1.05 * float(np.median(apart))
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


def _is_shaded(pixels: Pixels, modes: list[int]) -> bool:
    """Whether a shadow, weaker than the ink, lies along a side of a picture whose ground is even elsewhere."""
    times = math.ceil(max(pixels.shape[:2]) / SMALL)
    away = np.abs(pixels[::times, ::times].astype(np.int16) - np.array(modes, dtype=np.int16)).max(axis=2)
    peak = float(np.percentile(away, 99.8))
    for side in (away[0], away[-1], away[:, 0], away[:, -1]):
        off = side[side > max(16, 0.15 * peak)]
        if len(off) > 0.25 * len(side) and float(np.median(off)) < 0.75 * peak:
            return True
    return False


def ground_level(grey: Pixels) -> tuple[int, float]:
    """The grey level about which most pixels lie, and the share of those that lie there."""
    counts = np.bincount(grey.ravel(), minlength=256)
    near = np.convolve(counts, np.ones(9, dtype=np.int64), mode="same")
    middle = int(near.argmax())
    first = max(0, middle - 4)
    return first + int(counts[first : middle + 5].argmax()), float(near[middle] / grey.size)


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


def peak_of(ink: Map) -> float:
    """How strong the strongest ink is, in grey levels, a speck aside."""
    return float(ndimage.uniform_filter(ink, 3).max())


class Parts:
    """The connected parts of the ink; ``main`` is the label of the one with most ink that is no frame, 0 for none."""

    def __init__(self, ink: Map, peak: float, grain: float) -> None:
        self.labels, count = ndimage.label(ink > max(0.2 * peak, 3 * grain), np.ones((3, 3)))
        self.main = 0
        self.mass: dict[int, float] = {}
        self.boxes: dict[int, tuple[int, int, int, int]] = {}  # top, left, bottom, right
        self.patches: set[int] = set()
        if count == 0:
            return
        every = np.arange(1, count + 1)
        strong = ndimage.maximum(ink, self.labels, every) > max(0.5 * peak, 4 * grain)
        mass = ndimage.sum_labels(ink, self.labels, every)
        slices = ndimage.find_objects(self.labels)
        shown = [k for k in range(count) if strong[k] and mass[k] > 0.005 * mass[strong].max()]
        self.mass = {k + 1: float(mass[k]) for k in shown}
        self.boxes = {
            k + 1: (slices[k][0].start, slices[k][1].start, slices[k][0].stop, slices[k][1].stop) for k in shown
        }
        self.patches = self._find_patches()
        if shown:
            self.main = max(self.mass, key=lambda part: self.mass[part] * (0.02 if self.is_frame(part) else 1))

    def extent(self, part: int) -> int:
        """The longer side of a part's box."""
        top, left, bottom, right = self.boxes[part]
        return int(max(bottom - top, right - left))

    def _find_patches(self) -> set[int]:
        """Parts that lie broad at the border and are much thicker than another: corners of a shadow, not strokes."""
        height, width = self.labels.shape
        large = [part for part in self.mass if self.mass[part] > 0.1 * max(self.mass.values())]
        broad = set()
        for part in large if len(large) > 1 else ():
            top, left, bottom, right = self.boxes[part]
            sides = ((top == 0, 0, 0), (bottom == height, 0, -1), (left == 0, 1, 0), (right == width, 1, -1))
            shape = self.labels[top:bottom, left:right] == part
            if any(at and shape.take(row, axis).sum() > 0.2 * self.extent(part) for at, axis, row in sides):
                broad.add(part)
        if not broad:
            return set()
        thickness = {}
        for part in large:
            top, left, bottom, right = self.boxes[part]
            shape = np.pad(self.labels[top:bottom, left:right] == part, 1)
            thickness[part] = float(ndimage.distance_transform_cdt(shape).max())
        return {part for part in broad if thickness[part] > 1.6 * min(thickness.values())}

    def is_frame(self, part: int) -> bool:
        """Whether a part runs along one of the picture's sides, is a rectangle around another part, or a patch."""
        if part in self.patches:
            return True
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


def without_lines(ink: Map, threshold: float) -> Map:
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
