"""Handwritten digits of many hands, in one form: what the network that comes with the package is trained on."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from string import ascii_letters

import numpy as np
import numpy.typing as npt
from PIL import Image

from datamodules import strokes
from datamodules.augmentation import Augmentation, BaseAugmentation
from datamodules.base import ImageDataModule
from datamodules.dataset import OUTLIER, Collection
from datamodules.errors import UserError
from datamodules.mnist import MNISTDataModule
from datamodules.normalizer import DigitNormalizer
from datamodules.optdigits import OptDigitsDataModule
from datamodules.semeion import SemeionDataModule
from datamodules.splits import pixel_digests

Pixels = npt.NDArray[np.uint8]
SIGNS = ascii_letters + "!?#%&@$+=<>*()[]{}:;~^"


class DigitsDataModule(ImageDataModule):
    """MNIST, Semeion, scikit-learn's digits, digits drawn by program, printed ones; and what is not a digit.

    All are brought into MNIST's form, by the ``DigitNormalizer`` that will bring pictures into it. Small collections
    are repeated, so that they count; copies stay on one side of the split. Images that show no digit (letters, signs,
    scribbles, numbers of several digits, blots) are trained on as outliers and are in no validation set. ``test`` uses
    MNIST's official 10,000 test images.

    Args:
        root: Folder that holds ``MNIST/raw`` and ``semeion.data``; downloaded into it where they aren't there.
        drawn: Digits that are drawn by program.
        hurried: The same, in forms that are seldom written alone, but often in numbers.
        outliers: Outliers that are drawn by program, beside the printed ones.
        val_fraction: Share of the images that are held out for validation, in (0, 1), class by class.
        split_seed: Another seed gives another split; the training seed does not matter to it.
        split_file: A ``split.csv`` of an earlier run, to use its split instead.
        batch_size: Images a step and process.
        augmentation: How training images are varied; null leaves them as they are.

    Raises:
        UserError: An argument is out of its range.
    """

    def __init__(
        self,
        root: str = "data",
        drawn: int = 10_000,
        hurried: int = 0,
        outliers: int = 18_000,
        val_fraction: float = 0.05,
        split_seed: int = 42,
        split_file: str | None = None,
        batch_size: int = 256,
        augmentation: BaseAugmentation | None = Augmentation(),
    ) -> None:
        super().__init__(
            in_channels=1,
            val_fraction=val_fraction,
            split_seed=split_seed,
            split_file=split_file,
            batch_size=batch_size,
            augmentation=augmentation,
        )
        if min(drawn, hurried, outliers) < 0:
            raise UserError(f"drawn, hurried and outliers must be at least 0, got {drawn}, {hurried} and {outliers}")
        self.drawn, self.hurried, self.outliers = drawn, hurried, outliers
        self._mnist = MNISTDataModule(root, val_fraction=val_fraction * 2 / 3, split_seed=split_seed)
        self._semeion = SemeionDataModule(root)

    @property
    def image_size(self) -> int:
        """28 pixels."""
        return self._mnist.image_size

    @property
    def class_names(self) -> list[str]:
        """The digits."""
        return self._mnist.class_names

    @property
    def to_replay(self) -> ImageDataModule:
        """MNIST alone, since drawing all others takes minutes; what it validates is validated here, too.

        The order for validation is the same, but how far it goes depends a little on the other images, so that only
        the first two thirds of the share are sure to be in it.
        """
        return self._mnist

    def prepare_data(self) -> None:
        """Download MNIST and Semeion where they are missing, once for all processes of a machine.

        Raises:
            UserError: They are missing and can't be downloaded, or are damaged.
        """
        self._mnist.prepare_data()
        self._semeion.prepare_data()

    def load(self) -> Collection:
        """Load and draw the images; the same ones each time."""
        mnist, semeion, optdigits = self._mnist.load(), self._semeion.load(), OptDigitsDataModule().load()
        normalizer = DigitNormalizer.fit(mnist.pixels)
        assert normalizer is not None
        generator = np.random.default_rng(0)
        size, extent = self.image_size, normalizer.extent[1]
        pens = generator.uniform(0.8 * normalizer.half[0], 1.25 * normalizer.half[1], 1000)
        drawn, drawn_labels = strokes.draw_digits(generator, self.drawn, size, extent, pens)
        hurried = strokes.draw_digits(np.random.default_rng(1), self.hurried, size, extent, pens, strokes.HURRIED)
        digits = strokes.printed("0123456789", 64)
        signs = strokes.printed(SIGNS, 64)
        none = np.concatenate(
            [
                np.repeat(_place(normalizer, [image for _, image in signs]), 6, axis=0),
                strokes.draw_others(generator, self.outliers * 5 // 6, size, extent, pens),
                strokes.draw_blots(generator, self.outliers // 6, size),
            ]
        )
        parts = {
            "mnist": (mnist.pixels[:, 0], mnist.labels, 1),
            "semeion": (_place(normalizer, semeion.pixels[:, 0]), semeion.labels, 6),
            "optdigits": (_place(normalizer, optdigits.pixels[:, 0]), optdigits.labels, 4),
            "drawn": (drawn, drawn_labels, 1),
            "hurried": (*hurried, 1),
            "printed": (
                _place(normalizer, [image for _, image in digits]),
                np.array([int(digit) for digit, _ in digits]),
                12,
            ),
            "none": (none, np.full(len(none), OUTLIER), 1),
        }
        pixels = np.concatenate([np.repeat(images, times, axis=0) for images, _, times in parts.values()])[:, None]
        labels = np.concatenate([np.repeat(labels, times) for _, labels, times in parts.values()])
        names = [
            f"{part}/{row:05d}" for part, (images, _, times) in parts.items() for row in range(len(images) * times)
        ]
        return Collection(pixels, labels, pixel_digests(pixels), names)

    def load_test(self) -> Collection:
        """Load MNIST's official test images."""
        return self._mnist.load_test()


def _place(normalizer: DigitNormalizer, images: Iterable[Pixels]) -> Pixels:
    """Images of light ink on black, in MNIST's form: (N, size, size), uint8."""

    def place(image: Pixels) -> Pixels:
        times = max(1, round(64 / max(image.shape)))
        shape = (times * image.shape[1], times * image.shape[0])
        ink = np.asarray(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC), np.float32) / np.float32(255)
        return normalizer.place(ink, ink > 0.3)

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(place, images)))
