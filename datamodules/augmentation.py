"""Random rotation, zoom, translation and contrast of a whole batch, each image by its own parameters."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """What training images are varied by; the names and meanings are those of torchvision's transforms.

    The same as ``RandomAffine(degrees, translate, scale, BILINEAR, fill)`` and then ``ColorJitter(contrast)`` on
    each image by itself, except that translations are not rounded to whole pixels. There is no flip: a flipped 2
    is no 2.

    Attributes:
        degrees: Rotation angles are drawn from (-degrees, degrees).
        translate: Shifts are drawn from ± this fraction of the width and of the height.
        scale: Zoom factors are drawn from this interval.
        contrast: Contrast factors are drawn from (1 - contrast, 1 + contrast).
        fill: Grey of the area that comes into view, in [0, 1]: 0 for light ink on black, 1 for ink on paper.
    """

    degrees: float = 10.0
    translate: tuple[float, float] = (0.05, 0.05)
    scale: tuple[float, float] = (0.9, 1.1)
    contrast: float = 0.1
    fill: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 180:
            raise UserError(f"degrees must lie in [0, 180], got {self.degrees}")
        if not all(0 <= fraction <= 1 for fraction in self.translate):
            raise UserError(f"translate must be two fractions in [0, 1], got {self.translate}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"scale must be (smallest, largest), both above 0, got {self.scale}")
        if not 0 <= self.contrast <= 1:
            raise UserError(f"contrast must lie in [0, 1], got {self.contrast}")
        if not 0 <= self.fill <= 1:
            raise UserError(f"fill must lie in [0, 1], got {self.fill}")

    def draw(self, seed: int, epoch: int, count: int) -> Tensor:
        """Draw the parameters of every sample of a training set for one epoch.

        They follow from (seed, epoch, sample) alone: neither batch size, number of processes nor a resume changes
        what a sample looks like in an epoch. The generator is counter-based (Philox; Salmon et al. 2011,
        https://doi.org/10.1145/2063384.2063405).

        Returns:
            (count, 5), float32: angle in degrees (counter-clockwise negative, as in torchvision), shifts in x and y
            as fractions of the side, zoom factor, contrast factor.
        """
        generator = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)))
        low = np.array([-self.degrees, *(-t for t in self.translate), self.scale[0], 1 - self.contrast])
        high = np.array([self.degrees, *self.translate, self.scale[1], 1 + self.contrast])
        drawn = generator.random((count, 5), dtype=np.float32)
        return torch.from_numpy((low + drawn * (high - low)).astype(np.float32))

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Augment a batch on its device, in one resampling.

        Args:
            images: (B, C, H, W), uint8.
            parameters: (B, 5), one row of ``draw`` an image.

        Returns:
            (B, C, H, W), float32 in [0, 1].
        """
        angle, shift_x, shift_y, zoom, contrast = parameters.to(images.device).unbind(1)
        height, width = images.shape[-2:]
        # grid_sample takes the inverse map, from output to input, in coordinates that span (-1, 1) on both axes:
        # x_in = R(-angle) / zoom · (x_out - shift), where the aspect ratio undoes the two axes' different units.
        cos, sin = torch.cos(angle * (math.pi / 180)) / zoom, torch.sin(angle * (math.pi / 180)) / zoom
        x, y = 2 * shift_x, 2 * shift_y
        up, across = sin * (height / width), -sin * (width / height)
        inverse = torch.stack((cos, up, -cos * x - up * y, across, cos, -across * x - cos * y), dim=1).view(-1, 2, 3)
        # (B, 2, H, W) from a row and a column: a third of the time of affine_grid, which multiplies every point.
        columns = (2 * torch.arange(width, device=images.device) + 1) / width - 1
        rows = (2 * torch.arange(height, device=images.device) + 1) / height - 1
        row = inverse[:, :, 0, None, None] * columns
        column = inverse[:, :, 1, None, None] * rows[:, None] + inverse[:, :, 2, None, None]
        grid = (row + column).permute(0, 2, 3, 1)
        # Outside of the image grid_sample gives 0, so what is sampled is the difference from the fill.
        pixels = images.float().div_(255).sub_(self.fill)
        pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        pixels = pixels.add_(self.fill)
        mean = to_grey(pixels).mean(dim=(1, 2, 3), keepdim=True)
        return torch.lerp(mean, pixels, contrast.view(-1, 1, 1, 1)).clamp_(0, 1)


def to_grey(pixels: Tensor) -> Tensor:
    """(B, 1 or 3, H, W), float -> (B, 1, H, W): torchvision's ``rgb_to_grayscale``."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)
