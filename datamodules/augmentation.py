"""Random rotation, zoom, translation, bending and contrast of a whole batch, each image by its own parameters."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.errors import UserError

NODES = 5  # an image is bent by moving so many points across, and as many down


class BaseAugmentation(ABC):
    """How training images are varied: a frozen dataclass of plain values, so that a checkpoint can hold it."""

    @abstractmethod
    def draw(self, seed: int, epoch: int, count: int) -> Tensor:
        """Draw the parameters of every sample of a training set for one epoch; they must follow from these alone.

        Args:
            seed: Of the run.
            epoch: From 0.
            count: N, how many samples there are.

        Returns:
            (N, P), a row for each sample.
        """

    @abstractmethod
    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Augment a batch on its device.

        Args:
            images: (B, C, H, W), uint8.
            parameters: (B, P), one row of ``draw`` an image, on the CPU.

        Returns:
            (B, C, H, W), float32 in [0, 1].
        """


def philox(seed: int, epoch: int) -> np.random.Generator:
    """Random numbers that follow from seed and epoch alone.

    The generator is counter-based (Philox; Salmon et al. 2011, https://doi.org/10.1145/2063384.2063405).
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, epoch], np.uint64)))


@dataclass(frozen=True)
class Augmentation(BaseAugmentation):
    """What training images are varied by; the names and meanings are those of torchvision's transforms.

    The same as ``RandomAffine(degrees, translate, scale, BILINEAR, fill)`` and then ``ColorJitter(contrast)`` on
    each image by itself, except that translations are not rounded to whole pixels. ``elastic`` then bends what is
    drawn, as another hand would have drawn it (Simard et al. 2003, https://doi.org/10.1109/ICDAR.2003.1227801). There
    is no flip: a flipped 2 is not a 2.

    Attributes:
        degrees: Rotation angles are drawn from (-degrees, degrees).
        translate: Shifts are drawn from ± this fraction of the width and of the height.
        scale: Zoom factors are drawn from this interval.
        contrast: Contrast factors are drawn from (1 - contrast, 1 + contrast).
        fill: Grey of the area that comes into view, in [0, 1]: 0 for light ink on black, 1 for ink on paper.
        elastic: The points of a grid of 5 × 5 are moved by up to ± this fraction of the width and of the height, and
            what lies between them smoothly, as ``torchvision.transforms.v2.functional.elastic`` does it.
    """

    degrees: float = 10.0
    translate: tuple[float, float] = (0.05, 0.05)
    scale: tuple[float, float] = (0.9, 1.1)
    contrast: float = 0.1
    fill: float = 0.0
    elastic: float = 0.0

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
        if not 0 <= self.elastic <= 1:
            raise UserError(f"elastic must lie in [0, 1], got {self.elastic}")

    def draw(self, seed: int, epoch: int, count: int) -> Tensor:
        """Draw the parameters of every sample of a training set for one epoch.

        They follow from (seed, epoch, sample) alone: neither batch size, number of processes nor a resume changes
        what a sample looks like in an epoch.

        Returns:
            (count, 5), float32: angle in degrees (counter-clockwise negative, as in torchvision), shifts in x and y
            as fractions of the side, zoom factor, contrast factor. Where images are bent, (count, 55): then how far
            each of the 5 × 5 points is moved in x, and in y, in the same fractions.
        """
        moved = [self.elastic] * (2 * NODES**2 if self.elastic else 0)
        low = [-self.degrees, *(-t for t in self.translate), self.scale[0], 1 - self.contrast, *(-m for m in moved)]
        high = [self.degrees, *self.translate, self.scale[1], 1 + self.contrast, *moved]
        drawn = philox(seed, epoch).random((count, len(low)), dtype=np.float32)
        return torch.from_numpy((np.array(low) + drawn * (np.array(high) - low)).astype(np.float32))

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Augment a batch on its device, in one resampling.

        Args:
            images: (B, C, H, W), uint8.
            parameters: (B, 5 or 55), one row of ``draw`` an image.

        Returns:
            (B, C, H, W), float32 in [0, 1].
        """
        parameters = parameters.to(images.device)
        angle, shift_x, shift_y, zoom, contrast = parameters[:, :5].unbind(1)
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
        grid = row + column
        if self.elastic:
            moved = bend(parameters[:, 5:].view(-1, 2, NODES, NODES), height, width)
            grid += (inverse[:, :, :2] @ moved.flatten(2)).view_as(moved)
        grid = grid.permute(0, 2, 3, 1)
        # Outside of the image grid_sample gives 0, so what is sampled is the difference from the fill.
        pixels = images.float()
        if self.fill:
            pixels = pixels.sub_(255 * self.fill)
        pixels = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        # Scaling to [0, 1], contrast around the mean and the fill are one multiplication and one addition a pixel.
        mean = to_grey(pixels).mean(dim=(1, 2, 3), keepdim=True)
        factor = (contrast / 255).view(-1, 1, 1, 1)
        shift = self.fill + mean * (1 / 255 - factor)
        return torch.addcmul(shift, pixels, factor).clamp_(0, 1)


def bend(nodes: Tensor, height: int, width: int) -> Tensor:
    """Spread how far the points of a grid are moved over all pixels, by bicubic interpolation.

    Args:
        nodes: (B, 2, M, N), float32, in x and in y as fractions of the width and height; the grid spans the image.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Returns:
        (B, 2, height, width), float32, in the units of ``grid_sample``: 2 is a whole side.
    """
    down, across = (
        F.interpolate(
            torch.eye(count, device=nodes.device)[None, None], (side, count), mode="bicubic", align_corners=True
        )[0, 0]
        for side, count in zip((height, width), nodes.shape[2:], strict=True)
    )
    return 2 * (down @ nodes @ across.T)  # separable, so two small products do it


@lru_cache
def _grain(height: int, width: int) -> Tensor:
    """(4 height, 4 width), float32: noise of standard deviation 1 to cut the grain of images out of."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((4 * height, 4 * width), np.float32))


def cut_grain(height: int, width: int, at_y: Tensor, at_x: Tensor) -> Tensor:
    """(B, height, width), float32: the grain of images, by two random numbers in [0, 1) of each, (B,)."""
    field = _grain(height, width)
    tops, lefts = (at_y * 3 * height).long().tolist(), (at_x * 3 * width).long().tolist()
    return torch.stack([field[y : y + height, x : x + width] for y, x in zip(tops, lefts, strict=True)])


def to_grey(pixels: Tensor) -> Tensor:
    """(B, 1 or 3, H, W), float -> (B, 1, H, W): torchvision's ``rgb_to_grayscale``."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)
