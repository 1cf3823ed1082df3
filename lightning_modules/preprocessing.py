"""Pixels -> network input: a part of the network, so that it travels with its weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datamodules.augmentation import to_grey


class Preprocessing(nn.Module):
    """Rescale, match channels, resize and normalise a batch, on its device.

    Args:
        channels: Channels that the network takes, 1 or 3: grey is repeated, colour is turned to grey.
        size: Side of the square that the network takes, in pixels; resized bilinearly, antialiased.
        mean: Mean of each channel, or of all, in [0, 1].
        std: Standard deviation of each channel, or of all, in [0, 1].
        interpolation: ``bilinear`` or ``bicubic``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str = "bilinear",
    ) -> None:
        super().__init__()
        self.channels = channels
        self.size = size
        self.interpolation = interpolation
        for name, values in (("mean", mean), ("std", std)):
            each = torch.tensor(values).expand(channels).clone()
            self.register_buffer(name, each.view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Make the network's input.

        Args:
            images: (B, 1 or 3, H, W), uint8, or float in [0, 1].

        Returns:
            (B, channels, size, size), of the network's precision: float32 by default.
        """
        pixels = images.float()
        if self.channels == 1:
            pixels = to_grey(pixels)
        if pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode=self.interpolation, antialias=True)
        white = 1.0 if images.is_floating_point() else 255.0
        # Broadcasting the statistics also repeats grey to the network's channels; a network in half precision
        # (`--trainer.precision bf16-true`) has them, and takes its input, in half precision.
        return ((pixels - white * self.mean) / (white * self.std)).to(self.mean.dtype)
