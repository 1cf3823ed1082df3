"""Augmentation by what else may happen to an image: lines across it, parts inverted, uneven ground, noise, blur."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.augmentation import Augmentation, philox
from datamodules.errors import UserError

LINES = 2
PARTS = 2
NODES = 4  # the ground is smooth between so many points across, and as many down
NOISE = 1 << 16  # numbers that noise is taken from
COUNTS = [6, 0, 6 * LINES, 4 * PARTS, 1, 1 + NODES**2, 3]  # numbers of an image: which kinds it has, and for each, how


@dataclass(frozen=True)
class CorruptingAugmentation(Augmentation):
    """As ``Augmentation``, and then six kinds of corruption, each on some of the images.

    An image is reduced to its outlines; has lines across it; parts of it are inverted; it is blurred; it has less
    contrast, on an uneven ground; it is noisy. These are of random strength and place: kinds to learn from, not those
    of any test.

    Attributes:
        share: Each kind is on this share of the images, in [0, 1], independently of the others.
    """

    share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise UserError(f"share must lie in [0, 1], got {self.share}")

    def draw(self, seed: int, epoch: int, count: int) -> Tensor:
        """Draw the parameters of every sample of a training set for one epoch; see ``Augmentation.draw``.

        Returns:
            (count, P + 47), float32: the P of ``Augmentation``, then numbers in [0, 1).
        """
        beyond = philox(seed, epoch + 2**63)  # not the numbers by which images are moved
        more = torch.from_numpy(beyond.random((count, sum(COUNTS)), dtype=np.float32))
        return torch.cat((super().draw(seed, epoch, count), more), dim=1)

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Augment a batch on its device.

        Args:
            images: (B, C, H, W), uint8.
            parameters: (B, P + 47), one row of ``draw`` an image.

        Returns:
            (B, C, H, W), float32 in [0, 1].
        """
        moved, more = parameters[:, : -sum(COUNTS)], parameters[:, -sum(COUNTS) :].to(images.device)
        pixels = super().__call__(images, moved)
        kinds, *numbers = torch.split(more, COUNTS, dim=1)
        for kind, corrupt in enumerate((_outlined, _crossed, _partly_inverted, _blurred, _on_ground, _noisy)):
            rows = (kinds[:, kind] < self.share).nonzero()[:, 0]
            if len(rows):
                pixels[rows] = corrupt(pixels[rows], numbers[kind][rows]).clamp_(0, 1)
        return pixels


def _outlined(pixels: Tensor, numbers: Tensor) -> Tensor:
    """How bright it is beside each pixel at most, less how bright it is there."""
    return F.max_pool2d(pixels, 3, 1, 1) - pixels


def _crossed(pixels: Tensor, numbers: Tensor) -> Tensor:
    """Bright lines from the left to the right, straight or wavy: six numbers each."""
    y, x = _places(pixels)
    for line in torch.split(numbers, 6, dim=1):
        left, right, width, bend, waves, brightness = (line[:, [column]] for column in range(6))
        middle = left + (right - left) * x + 0.1 * (bend - 0.5) * torch.sin(20 * waves * x)  # (B, W)
        distance = (y[:, None] - middle[:, None]).abs() / (0.01 + 0.06 * width)[..., None]
        pixels = torch.maximum(pixels, ((1.5 - distance).clamp(0, 1) * (0.5 + 0.5 * brightness)[..., None])[:, None])
    return pixels


def _partly_inverted(pixels: Tensor, numbers: Tensor) -> Tensor:
    """Rectangles in which bright is dark; many span the whole height."""
    y, x = _places(pixels)
    for part in torch.split(numbers, 4, dim=1):
        (left, right), (top, bottom) = (part[:, ends].sort(dim=1).values.T[..., None] for ends in ([0, 1], [2, 3]))
        inside = ((y >= 1.4 * top - 0.2) & (y <= 1.4 * bottom - 0.2))[..., None] & ((x >= left) & (x <= right))[:, None]
        pixels = torch.where(inside[:, None], 1 - pixels, pixels)
    return pixels


def _blurred(pixels: Tensor, numbers: Tensor) -> Tensor:
    """Between an image and its means over five by five pixels."""
    return torch.lerp(pixels, F.avg_pool2d(pixels, 5, 1, 2), numbers[..., None, None])


def _on_ground(pixels: Tensor, numbers: Tensor) -> Tensor:
    """With less contrast, on a ground that is bright here and darker there."""
    height, width = pixels.shape[-2:]
    nodes = (numbers[:, 1:2] + numbers[:, 1:]) / 2  # not far from the first of them
    ground = F.interpolate(nodes.view(-1, 1, NODES, NODES), (height, width), mode="bicubic", align_corners=True)
    return torch.lerp(ground, pixels, 0.2 + 0.7 * numbers[:, :1, None, None])


def _noisy(pixels: Tensor, numbers: Tensor) -> Tensor:
    """With some pixels black or white, or with noise on all of them."""
    start, amount, kind = (numbers[:, column, None, None, None] for column in range(3))
    bank = torch.from_numpy(philox(0, 0).random(NOISE, dtype=np.float32)).to(pixels.device)
    places = torch.arange(pixels[0].numel(), device=pixels.device).view_as(pixels[0])
    drawn = bank[((start * NOISE).long() + places) % NOISE]
    some = torch.where(drawn < 0.15 * amount, 0.0, torch.where(drawn > 1 - 0.15 * amount, 1.0, pixels))
    return torch.where(kind < 0.5, some, pixels + amount * (drawn - 0.5))


def _places(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(H,) and (W,), float32 in [0, 1]: where the rows and columns of images are."""
    height, width = pixels.shape[-2:]
    return torch.linspace(0, 1, height, device=pixels.device), torch.linspace(0, 1, width, device=pixels.device)
