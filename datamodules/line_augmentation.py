"""Labelled lines as others would have written and scanned them: slant, size, bending, pen, contrast and grain."""

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.augmentation import BaseAugmentation, bend, cut_grain, philox
from datamodules.errors import UserError

DOWN, ACROSS = 3, 9  # a line is bent by moving so many points
EACH = 10 + 2 * DOWN * ACROSS  # random numbers of a line


@dataclass(frozen=True)
class LineAugmentation(BaseAugmentation):
    """What labelled lines are varied by. They start at the left; one that would be too long is stretched less.

    Attributes:
        slant: Shears are drawn from ± this, in pixels across for one down.
        stretch: Factors of the width are drawn from this interval.
        zoom: Factors of the height are drawn from this interval.
        translate: Shifts are drawn from ± this fraction of the height, across and down.
        elastic: The points of a grid of 3 × 9 are moved by up to ± this fraction of the height, and what lies between
            them smoothly (Simard et al. 2003, https://doi.org/10.1109/ICDAR.2003.1227801).
        pen: Strokes are made thicker, or thinner, by up to this many pixels on each side.
        contrast: Ink is raised to powers of up to 4 to the ± this: what is faint goes, or comes out.
        grain: Noise of up to this standard deviation is added, where full ink is 1.

    Raises:
        UserError: An attribute is out of its range: [0, 1], or for intervals (smallest, largest), both above 0.
    """

    slant: float = 0.25
    stretch: tuple[float, float] = (0.8, 1.2)
    zoom: tuple[float, float] = (0.8, 1.1)
    translate: float = 0.06
    elastic: float = 0.06
    pen: float = 0.6
    contrast: float = 0.4
    grain: float = 0.06

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if isinstance(value, tuple):
                if not 0 < value[0] <= value[1]:
                    raise UserError(f"{name} must be (smallest, largest), both above 0, got {value}")
            elif not 0 <= value <= 1:
                raise UserError(f"{name} must lie in [0, 1], got {value}")

    def draw(self, seed: int, epoch: int, count: int) -> Tensor:
        """Draw the parameters of every sample of a training set for one epoch; see ``Augmentation.draw``.

        Returns:
            (count, 64), float32: numbers in [0, 1).
        """
        beyond = philox(seed, epoch + 2**63)  # not the numbers by which lines are composed
        return torch.from_numpy(beyond.random((count, EACH), dtype=np.float32))

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Vary a batch of lines, in one resampling.

        Args:
            images: (B, 1, H, W), uint8: light ink on black, from the left.
            parameters: (B, 64), one row of ``draw`` a line.

        Returns:
            (B, 1, H, W), float32 in [0, 1].
        """
        pixels = images.float() / 255
        height, width = pixels.shape[2:]

        def between(place: int, low: float, high: float) -> Tensor:
            return low + (high - low) * parameters[:, place, None, None]

        inked = pixels.amax(dim=(1, 2)) > 0
        used = (width - inked.flip(1).int().argmax(dim=1)).view(-1, 1, 1)
        slant, zoom = between(0, -self.slant, self.slant), between(1, *self.zoom)
        stretch = torch.minimum(between(2, *self.stretch), width / used)
        room = self.translate * height
        left = torch.minimum(between(3, -room, room), width - used * stretch)
        top = between(4, -room, room)
        # From a pixel of the result to where it is taken from, in pixels from the left and from the middle.
        y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
        down = (y - height / 2 - top) / zoom
        across = (x - left) / stretch + slant * down
        moved = (2 * parameters[:, 10:].view(-1, 2, DOWN, ACROSS) - 1) * self.elastic
        moved = moved * torch.tensor([height / width, 1.0])[:, None, None]
        grid = torch.stack([2 * across / width - 1, (2 * down / height).expand_as(across)], dim=1)
        grid = (grid + bend(moved, height, width)).permute(0, 2, 3, 1)
        ink = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        thick, thin = F.max_pool2d(ink, 3, 1, 1), -F.max_pool2d(-ink, 3, 1, 1)
        pen = between(5, -self.pen, self.pen)[:, None]
        ink = ink + pen.clamp_min(0) * (thick - ink) + pen.clamp_max(0) * (ink - thin)
        ink = ink ** torch.exp2(2 * between(6, -self.contrast, self.contrast))[:, None]
        noise = cut_grain(height, width, parameters[:, 7], parameters[:, 8])
        return (ink + self.grain * (parameters[:, 9, None, None] * noise)[:, None]).clamp_(0, 1)
