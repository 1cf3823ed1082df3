"""Compose lines of several digits of single ones, as hands write them on forms."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from datamodules.augmentation import bend, cut_grain, philox
from datamodules.dataset import OUTLIER, ImageDataset
from datamodules.normalizer import DigitNormalizer, as_grey
from datamodules.strokes import TIMES, curves, draw_stroke

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

LENGTHS = (0.08, 0.1, 0.16, 0.22, 0.24, 0.12, 0.05, 0.03)  # how often a line has 1, 2, … signs to read
DIGITS, OTHERS = len(LENGTHS), 4  # most signs of a line to read; and two separators, an end, a part of a neighbour
SLOTS = DIGITS + OTHERS
NODES = 3  # a sign is bent by moving so many points across, and as many down …
BENT = 0.075  # … by up to this share of its image's side
EACH, COMMON = 12 + 2 * NODES**2, 52  # random numbers of a sign, and of a line
TILE = 56  # side of what a sign is drawn on, in pixels
DRAWN = 200  # separators, and ends
SIDE, FOOT, TALL = 28, 24, 20  # of a sign's image, the row that it stands on, and its height, as in MNIST
INKED = 96  # what is lighter, of 255, is ink
NOTHING, SIGN, SEPARATOR, END, NEIGHBOUR, OTHER = range(6)  # what is in a slot of a line
# As in ``strokes``: 9 is the foot.
DOTS = ("49 59", "48 49 59 58 48")
COMMAS = ("58 49", "57 49", "56 58 39", "47 48 39", "46 58 49", "67 29")  # some hang below the foot
ENDS = (
    *("05 95", "15 75", "05 24 45 74 95", "03 93|06 96", "04 94|06 96", "20 29|70 79|03 93|06 96", "49 59", "28 09"),
    *("08 09|35 95", "19 08|35 95", "08 09|34 94|36 96", "28 19|33 93|36 96", "08 09|48 98"),  # .- ,- .= ,= ._
    *("44 45|48 49", "04 05|08 09|46 96", "44 45|48 49|64 65|68 69", "46 44 63 83", "15 75 28 88"),  # : :- :: r z
    *("28 62", "18 52|48 82", "05 95|37 52|57 72"),  # / // -//-
)


@dataclass(frozen=True)
class Signs:
    """Images of single signs.

    Attributes:
        pixels: (N, 28, 28), uint8: light ink on black, sorted by label; then separators, ends, and what is not read.
        starts: (K + 4,), int64: where each label's images begin, then separators, ends, what is not read, and N.
        boxes: (N, 3), float32: left, right and lower edge of the ink, in pixels.
    """

    pixels: Pixels
    starts: Labels
    boxes: npt.NDArray[np.float32]

    @classmethod
    def of(cls, images: ImageDataset, normalizer: DigitNormalizer, classes: int) -> "Signs":
        """Bring images into MNIST's form, sort them by their labels, and add separators and ends.

        Args:
            images: N of them, square; ``OUTLIER`` is the label of what is not read.
            normalizer: How they lie.
            classes: K.
        """
        generator = np.random.default_rng(0)
        pixels, labels = _as_mnist(images, normalizer), images.labels
        order = np.argsort(labels, kind="stable")
        outliers, order = order[labels[order] == OUTLIER], order[labels[order] != OUTLIER]
        counts = [*np.bincount(labels[order], minlength=classes), DRAWN, DRAWN, len(outliers)]
        drawn = [
            _draw_sign(generator, forms[number % len(forms)])
            for forms in ((*DOTS, *COMMAS), (*ENDS, *COMMAS))
            for number in range(DRAWN)
        ]
        every = np.concatenate([pixels[order], np.stack(drawn), pixels[outliers]])
        across, down = every.max(axis=1) > INKED, every.max(axis=2) > INKED
        edges = (across.argmax(1), SIDE - across[:, ::-1].argmax(1), SIDE - down[:, ::-1].argmax(1))
        return cls(every, np.concatenate([[0], np.cumsum(counts)]), np.stack(edges, axis=1).astype(np.float32))


def _as_mnist(images: ImageDataset, normalizer: DigitNormalizer) -> Pixels:
    """(N, 28, 28), uint8: light ink on black, as large as in MNIST."""
    grey = np.stack([as_grey(image) for image in images.collection.pixels[images.rows]])
    if (normalizer.ground, normalizer.ink) != (0, 255):
        share = (grey - np.float32(normalizer.ground)) / np.float32(normalizer.ink - normalizer.ground)
        grey = (255 * share).round().clip(0, 255).astype(np.uint8)
    side = round(TALL / normalizer.extent[1])
    if side != grey.shape[-1]:
        resized = [Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR) for image in grey]
        grey = np.stack([np.asarray(image) for image in resized])
    margin = max(0, SIDE - side)
    grey = np.pad(grey, ((0, 0), (margin // 2, margin - margin // 2), (margin // 2, margin - margin // 2)))
    corners = zip(_starts(grey.max(axis=2) > INKED), _starts(grey.max(axis=1) > INKED), strict=True)
    return np.stack([image[y : y + SIDE, x : x + SIDE] for image, (y, x) in zip(grey, corners, strict=True)])


def _starts(inked: npt.NDArray[np.bool_]) -> Labels:
    """Where to cut along a side, (N, S), bool: in the middle, and around the ink of what reaches beyond that."""
    side = inked.shape[1]
    first, after, middle = inked.argmax(1), side - inked[:, ::-1].argmax(1), (side - SIDE) // 2
    within = ((first >= middle) & (after <= middle + SIDE)) | ~inked.any(axis=1)
    starts: Labels = np.where(within, middle, ((first + after - SIDE) // 2).clip(0, side - SIDE))
    return starts


def _draw_sign(generator: np.random.Generator, form: str) -> Pixels:
    image = Image.new("L", (SIDE * TIMES, SIDE * TIMES))
    brush = ImageDraw.Draw(image)
    moved = generator.normal(0, 0.4, 2)
    if form in COMMAS:
        moved[1] += generator.uniform(0, 1.6)
    for points in curves(form):
        placed = (points + moved + generator.normal(0, 0.2, points.shape[1])) * TALL / 9 + (4, FOOT) - (0, TALL)
        draw_stroke(brush, placed * TIMES, generator.uniform(2.2, 3.2) * TIMES / 2)
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))


@dataclass(frozen=True)
class _Places:
    """Where the images of lines go: (B, SLOTS) each, float32.

    Attributes:
        x: Middle of the ink, in pixels of the line.
        y: Middle of the image.
        centre: Middle of the ink in the image, in its pixels.
        zoom_x: Pixels of the line for one of the image.
        zoom_y: The same, down.
        slant: Pixels to the left for one down.
        wide: Width of the ink.
        tall: Height of a sign.
        base: What it stands on.
    """

    x: Tensor
    y: Tensor
    centre: Tensor
    zoom_x: Tensor
    zoom_y: Tensor
    slant: Tensor
    wide: Tensor
    tall: Tensor
    base: Tensor


@dataclass(frozen=True)
class Composer:
    """Draws lines of signs; each follows from (seed, epoch, sample) alone.

    Attributes:
        signs: What lines are composed of.
        height: Of a line, in pixels.
        width: Of a line, in pixels.
    """

    signs: Signs
    height: int
    width: int

    def draw(self, seed: int, epoch: int, count: int) -> Tensor:
        """(count, P), float32 in [0, 1): the random numbers of every line of an epoch."""
        return torch.from_numpy(philox(seed, epoch).random((count, COMMON + SLOTS * EACH), dtype=np.float32))

    def __call__(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a batch of lines.

        Args:
            numbers: (B, P), rows of ``draw``.

        Returns:
            (B, 1, height, width), uint8: light ink on black; (B, 8), int64: the labels, filled up with -1; and (B, 8),
            float32: where the middle of each sign stands, as a share of the width.
        """
        common, each = numbers[:, :COMMON], numbers[:, COMMON:].view(len(numbers), SLOTS, EACH)
        labels, kinds = self._text(common, each)
        sign = self._choose(each, labels, kinds)
        places = self._place(common, each, kinds, sign)
        ink = self._stamp(common, each, sign, kinds != NOTHING, places)
        self._join(ink, common, each, kinds, places)
        return self._paper(common, ink), labels[:, :DIGITS], places.x[:, :DIGITS] / self.width

    def _text(self, common: Tensor, each: Tensor) -> tuple[Tensor, Tensor]:
        """(B, SLOTS) labels, -1 for what isn't read, and what is in each slot, from ``NOTHING`` to ``OTHER``."""
        classes = len(self.signs.starts) - 4
        count = (common[:, :1] > torch.tensor(LENGTHS).cumsum(0)[:-1]).sum(1, keepdim=True) + 1
        labels = (each[:, :, 0] * classes).long().clamp_max(classes - 1)
        again = each[:, :, 1] < torch.where(common[:, 51:52] < 0.3, 0.6, 0.2)
        for slot in range(1, DIGITS):  # the same sign twice, or more often, is what readers stumble over
            labels[:, slot] = torch.where(again[:, slot], labels[:, slot - 1], labels[:, slot])
        slots = torch.arange(SLOTS)
        kinds = torch.where(slots < count, SIGN, NOTHING)  # of the slots behind the signs none is below the count
        count = count[:, 0]
        kinds[:, DIGITS] = torch.where((common[:, 1] < 0.5) & (count > 1), SEPARATOR, NOTHING)
        kinds[:, DIGITS + 1] = torch.where((common[:, 1] < 0.1) & (count > 3), SEPARATOR, NOTHING)
        kinds[:, DIGITS + 2] = torch.where(common[:, 2] < 0.4, END, NOTHING)
        kinds[:, DIGITS + 3] = torch.where(common[:, 3] < 0.15, NEIGHBOUR, NOTHING)
        if self.signs.starts[-1] > self.signs.starts[-2]:  # what is not read, in place of what is
            others = ((common[:, 19] < 0.08) & (count < 5))[:, None]
            kinds = torch.where(others, torch.where(kinds == SIGN, OTHER, NOTHING), kinds)
        return torch.where(kinds == SIGN, labels, OUTLIER), kinds

    def _choose(self, each: Tensor, labels: Tensor, kinds: Tensor) -> Tensor:
        """(B, SLOTS): which image is in each slot."""
        starts = torch.from_numpy(self.signs.starts)
        group = torch.where(labels >= 0, labels, 0)
        for kind, behind in ((SEPARATOR, 4), (END, 3), (OTHER, 2)):
            group[kinds == kind] = len(starts) - behind
        group = torch.where(kinds == NEIGHBOUR, (each[:, :, 0] * (len(starts) - 4)).long(), group)
        number = each[:, :, 2].clone()
        for slot in range(1, DIGITS):  # a hand writes the same sign alike
            alike = (labels[:, slot] == labels[:, slot - 1]) & (each[:, slot, 8] < 0.7)
            number[:, slot] = torch.where(alike, number[:, slot - 1], number[:, slot])
        first, after = starts[group], starts[group + 1]
        return torch.minimum(first + (number * (after - first)).long(), after - 1)

    def _place(self, common: Tensor, each: Tensor, kinds: Tensor, sign: Tensor) -> "_Places":
        """Where each slot's image goes."""
        lines, (low, high) = len(common), (0.5 * self.height, 0.97 * self.height)
        left, right, foot = torch.from_numpy(self.signs.boxes)[sign].unbind(-1)
        tall = (low + (high - low) * common[:, 4:5]) * (1 + 0.24 * (each[:, :, 3] - 0.5))
        small = (each[:, :, 4] < 0.25) & (common[:, 5:6] < 0.4)
        tall = torch.where(small, 0.65 * tall, tall)
        count = (kinds == SIGN).sum(1)
        # The last three signs of a long number may be smaller. What ends one is smaller, and may stand above the foot.
        late = (torch.arange(SLOTS) >= count[:, None] - 3) & (kinds == SIGN) & (count > 3)[:, None]
        lower = (common[:, 5:6] - 0.4) / 0.15
        tall = torch.where(late & (lower >= 0) & (lower < 1), (0.55 + 0.3 * lower) * tall, tall)
        raised = torch.where(kinds == END, 0.5 * each[:, :, 10] * (1 - each[:, :, 11]) * tall, 0.0)
        tall = torch.where(kinds == END, (0.45 + 0.55 * each[:, :, 11]) * tall, tall)
        zoom_y = tall / TALL
        zoom_x = zoom_y * (0.7 + 0.75 * common[:, 6:7]) * (1 + 0.5 * (each[:, :, 5] - 0.5))
        slant = 0.25 * _normal(common[:, 7:8], common[:, 8:9]) + 0.16 * (each[:, :, 6] - 0.5)
        # Along the line: digits in order, separators between two of them, the end behind all.
        place = torch.arange(SLOTS).expand(lines, -1).float().clone()
        third = torch.where(common[:, 9] < 0.7, count - 3, (common[:, 10] * count).long()).clamp(1, DIGITS - 1)
        place[:, DIGITS] = torch.minimum(third, count - 1) - 0.5
        place[:, DIGITS + 1] = count - 2.5
        place[:, DIGITS + 2] = DIGITS + 0.5
        wide = torch.where((kinds != NOTHING) & (kinds != NEIGHBOUR), (right - left) * zoom_x, 0.0)
        gap = tall * (-0.12 + 0.45 * common[:, 11:12] ** 2 + 0.2 * (each[:, :, 7] - 0.5))
        gap = torch.where(common[:, 48:49] < 0.15, gap - 0.15 * tall, gap)
        gap = torch.maximum(gap, -0.3 * wide)
        gap = torch.where((kinds == SEPARATOR) | (kinds == END), gap.clamp_min(1.5) + 0.25 * tall * each[:, :, 8], gap)
        step = torch.where(wide > 0, (wide + gap).clamp_min(2.5), 0.0)
        order = place.argsort(dim=1)
        ahead = step.gather(1, order).cumsum(1) - step.gather(1, order)
        x = torch.empty_like(ahead).scatter_(1, order, ahead)
        total = (x + wide).amax(dim=1, keepdim=True)
        margin = 2 + 0.3 * self.height * common[:, 12:13]
        fit = ((self.width - 2 * margin) / total).clamp_max(1)
        free = (self.width - total * fit - 2 * margin).clamp_min(0)
        x = margin + free * common[:, 13:14] * (common[:, 14:15] < 0.5) + x * fit
        zoom_x = zoom_x * fit
        middle = x + 0.5 * (right - left) * zoom_x
        # Down: all stand on a line, which may rise or fall.
        room = self.height - tall.amax(1, keepdim=True)
        base = self.height - room * common[:, 15:16] - 0.5
        base = base + (common[:, 16:17] - 0.5) * 0.14 * (middle - self.width / 2) * (free < self.width)
        base = base + tall * 0.16 * (each[:, :, 9] - 0.5) - raised
        stands = (kinds == SIGN) | (kinds == OTHER)
        y = torch.where(stands, base - (foot - SIDE / 2) * zoom_y, base - (FOOT - SIDE / 2) * zoom_y)
        beside = kinds == NEIGHBOUR
        y = torch.where(beside, torch.where(each[:, :, 8] < 0.5, -0.3 * tall, self.height + 0.3 * tall), y)
        middle = torch.where(beside, each[:, :, 9] * self.width, middle)
        wide = (right - left) * zoom_x
        return _Places(middle, y, (left + right) / 2, zoom_x, zoom_y, slant, wide, tall, base)

    def _stamp(self, common: Tensor, each: Tensor, sign: Tensor, shown: Tensor, places: "_Places") -> Tensor:
        """Draw signs, (B, SLOTS), at their places, a little bent: (B, H, W), float32 in [0, 1]."""
        line, slot = shown.nonzero(as_tuple=True)
        chosen = (line, slot)
        pixels = torch.from_numpy(self.signs.pixels[sign[chosen].numpy()])[:, None].float() / 255
        x, y, centre = places.x[chosen], places.y[chosen], places.centre[chosen]
        corner_x, corner_y = (x - TILE / 2).floor(), (y - TILE / 2).floor()
        offset_x, offset_y = x - corner_x - TILE / 2, y - corner_y - TILE / 2
        across, down, lean = 1 / places.zoom_x[chosen], 1 / places.zoom_y[chosen], places.slant[chosen]
        # From a tile's pixels, counted from its middle, to the sign's, and then to the units of grid_sample.
        tilt = lean * across
        move_x = -offset_x * across - offset_y * tilt + centre - SIDE / 2
        points = ((2 * torch.arange(TILE) + 1) / TILE - 1) * TILE / SIDE
        grid_x = across.view(-1, 1, 1) * points + (tilt[:, None] * points + move_x[:, None] / (SIDE / 2))[:, :, None]
        grid_y = down[:, None] * points - offset_y[:, None] * down[:, None] / (SIDE / 2)
        grid = torch.stack([grid_x, grid_y[:, :, None].expand_as(grid_x)], dim=3)
        nodes = (2 * each[chosen][:, 12:] - 1).view(-1, 2, NODES, NODES)
        grid = grid + bend(BENT * nodes, TILE, TILE).permute(0, 2, 3, 1)
        drawn = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[:, 0]
        thin = (0.3 + 0.42 * common[:, 17])[line].view(-1, 1, 1)
        sharp = (1.6 + 2 * common[:, 18])[line].view(-1, 1, 1)
        tiles = ((drawn - thin) * sharp + 0.5).clamp(0, 1).numpy()
        tops = (corner_y.long() + TILE).clamp(0, self.height + TILE).tolist()
        starts = (corner_x.long() + TILE).clamp(0, self.width + TILE).tolist()
        canvas = np.zeros((len(shown), self.height + 2 * TILE, self.width + 2 * TILE), np.float32)
        for number, row in enumerate(line.tolist()):
            top, start = tops[number], starts[number]
            place = canvas[row, top : top + TILE, start : start + TILE]
            np.maximum(place, tiles[number], out=place)
        return torch.from_numpy(canvas[:, TILE:-TILE, TILE:-TILE])

    def _join(self, ink: Tensor, common: Tensor, each: Tensor, kinds: Tensor, places: "_Places") -> None:
        """Draw strokes, in place, by which a hand goes on from a sign to the next without lifting the pen."""
        both = (kinds[:, : DIGITS - 1] == SIGN) & (kinds[:, 1:DIGITS] == SIGN)
        share = torch.where(common[:, 51:52] < 0.3, 0.5, 0.2)  # more often where signs are repeated
        line, slot = (both & (common[:, 49:50] < share) & (each[:, : DIGITS - 1, 10] < 0.7)).nonzero(as_tuple=True)
        high = common[line, 50] < 0.6

        def end(slot: Tensor, number: Tensor, side: int) -> tuple[Tensor, Tensor]:
            tall, wide, base, x, slant = (
                part[line, slot] for part in (places.tall, places.wide, places.base, places.x, places.slant)
            )
            above = torch.where(high, 0.75 + 0.2 * number, 0.1 + 0.8 * number)
            return x + side * (0.5 * wide - 0.12 * tall) - slant * (0.5 - above) * tall, base - above * tall

        (x0, y0), (x1, y1) = end(slot, each[line, slot, 11], 1), end(slot + 1, each[line, slot + 1, 11], -1)
        pens = 0.5 + 0.9 * common[line, 17] ** 1.5
        across, down = torch.arange(self.width).float(), torch.arange(self.height).float()[:, None]
        strokes = torch.stack([x0, y0, x1, y1, pens], dim=1).tolist()
        for row, (left, top, right, bottom, pen) in zip(line.tolist(), strokes, strict=True):
            first, after = max(0, int(left) - 2), min(self.width, int(right) + 3)
            if not 0 < right - left < 0.5 * self.height or first >= after:
                continue
            x, y, dx, dy = across[first:after] - left, down - top, right - left, bottom - top
            along = ((x * dx + y * dy) / (dx * dx + dy * dy)).clamp(0, 1)
            away = torch.hypot(x - along * dx, y - along * dy)
            part = ink[row, :, first:after]
            torch.maximum(part, (pen + 0.5 - away).clamp(0, 1), out=part)

    def _paper(self, common: Tensor, ink: Tensor) -> Tensor:
        """(B, H, W) ink -> (B, 1, H, W), uint8: on paper with lines, a printed ground and grain."""
        lines = len(ink)
        y, x = torch.arange(self.height)[:, None].float(), torch.arange(self.width).float()

        def number(place: int) -> Tensor:
            return common[:, place].view(-1, 1, 1)

        printed = torch.zeros_like(ink)
        for first in (20, 25):  # waves of thin lines
            angle, pitch = math.pi * number(first), 2.5 + 7 * number(first + 1)
            wave = (x * torch.sin(angle) + y * torch.cos(angle)) / pitch
            wave = wave + number(first + 2) * torch.sin(x * (0.05 + 0.3 * number(first + 3)))
            printed = torch.maximum(printed, torch.sin(2 * math.pi * wave).clamp_min(0) * (number(first + 4) < 0.5))
        strength = 0.25 * number(30) ** 2
        ruled = torch.zeros_like(ink)
        for first, odds in ((31, 0.35), (36, 0.15)):  # below and above
            there = number(first) < odds
            at = self.height * (0.7 + 0.3 * number(first + 1) if first == 31 else 0.2 * number(first + 1))
            tilted = y - at - 0.06 * (number(first + 2) - 0.5) * (x - self.width / 2)
            thick = 0.6 + 1.2 * number(first + 3)
            ruled = torch.maximum(
                ruled, (thick + 0.5 - tilted.abs()).clamp(0, 1) * there * (0.2 + 0.8 * number(first + 4))
            )
        for place, share in ((41, 0.03), (42, 0.97)):  # borders of a cell
            there = number(place) < 0.03
            ruled = torch.maximum(ruled, (1.3 - (x - self.width * share).abs()).clamp(0, 1) * there * 0.8)
        grain = cut_grain(self.height, self.width, common[:, 43], common[:, 44])
        level = 0.55 + 0.45 * number(45)
        seen = torch.maximum(ink * level, ruled * level)
        seen = seen + strength * printed * (1 - seen)
        blurred = F.avg_pool2d(seen[:, None], 3, stride=1, padding=1)[:, 0]
        seen = seen + number(46) * (blurred - seen)
        seen = seen + 0.12 * number(47) ** 2 * grain
        peak = seen.flatten(1).quantile(0.995, dim=1).view(-1, 1, 1).clamp_min(0.2)
        return (255 * seen / peak).clamp(0, 255).to(torch.uint8).view(lines, 1, self.height, self.width)


def _normal(first: Tensor, second: Tensor) -> Tensor:
    """Two uniform random numbers -> a standard normal one (Box & Muller 1958)."""
    return torch.sqrt(-2 * torch.log(1 - first)) * torch.cos(2 * math.pi * second)
