"""Image files without labels -> what a network takes of them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.images import ImageError, read_image
from datamodules.ink import Pixels
from datamodules.normalizer import DigitNormalizer, Seen, max_side, normalize


class PictureFiles:
    """Image files, decoded when they are asked for.

    Args:
        paths: The files.
        image_size: Images are resized to this many pixels square.
        in_channels: 1 gives grey images, 3 colour.
        normalizer: How the digits of the network's training images lie; None resizes images, no more.

    Attributes:
        errors: What is wrong with each file that could not be read, by its index. Its pixels are zero.
        digits: How many digits each file that was read shows, by its index.
    """

    def __init__(
        self, paths: list[Path], image_size: int, in_channels: int, normalizer: DigitNormalizer | None = None
    ) -> None:
        self.paths = paths
        self.image_size = image_size
        self.in_channels = in_channels
        self.normalizer = normalizer
        self.errors: dict[int, str] = {}
        self.digits: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def pixels(self, rows: Sequence[int]) -> Pixels:
        """Decode some of them, in threads: (B, C, size, size), uint8."""
        with ThreadPoolExecutor() as pool:
            return np.stack(list(pool.map(self._read, rows)))

    def _read(self, index: int) -> Pixels:
        try:
            image = self.read(self.paths[index])
        except ImageError as error:
            self.errors[index] = str(error)
            return np.zeros((self.in_channels, self.image_size, self.image_size), np.uint8)
        seen = self.see(image)
        self.digits[index] = seen.digits
        return seen.pixels

    def read(self, path: Path) -> Image.Image:
        """A file as a picture of mode ``RGB``: faint ink may differ from its ground in colour alone.

        Raises:
            ImageError: It can't be read.
        """
        return read_image(path, channels=3, side=max_side(self.normalizer))

    def see(self, image: Image.Image) -> Seen:
        """A picture, of mode ``RGB``, as the network takes it."""
        return normalize(image, self.image_size, self.in_channels, self.normalizer)
