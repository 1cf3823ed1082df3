"""The handwritten digits that scikit-learn carries: real data that need no download."""

import numpy as np

from datamodules.augmentation import Augmentation, BaseAugmentation
from datamodules.base import ImageDataModule
from datamodules.dataset import Collection
from datamodules.splits import pixel_digests


class OptDigitsDataModule(ImageDataModule):
    """Optical recognition of handwritten digits: grey, 8×8, ten digits, 1,797 images by 13 writers.

    From Alpaydin & Kaynak 1998, https://doi.org/10.24432/C50P49, as ``sklearn.datasets.load_digits`` has it. The
    grey levels 0 to 16 are scaled to 0 to 255.

    Args:
        classes: Digits to keep, in this order, such as ``[0, 1, 2]``; None keeps all.
        val_fraction: Share of the images that are held out for validation, in (0, 1), class by class.
        split_seed: Another seed gives another split; the training seed does not matter to it.
        split_file: A ``split.csv`` of an earlier run, to use its split instead.
        batch_size: Images a step and process.
        augmentation: How training images are varied; null leaves them as they are.
        balance: Train on each class equally often, those of rare classes several times an epoch.
        folds: Cross-validation by so many parts of the images; None or 0 holds out ``val_fraction``.
        fold: Which of them is validated, from 1; null lets ``fit`` train a network for each.

    Raises:
        UserError: An argument is out of its range.
    """

    def __init__(
        self,
        classes: list[str | int] | None = None,
        val_fraction: float = 0.2,
        split_seed: int = 42,
        split_file: str | None = None,
        batch_size: int = 64,
        augmentation: BaseAugmentation | None = Augmentation(),
        balance: bool = False,
        folds: int | None = None,
        fold: int | None = None,
    ) -> None:
        super().__init__(
            in_channels=1,
            classes=classes,
            val_fraction=val_fraction,
            split_seed=split_seed,
            split_file=split_file,
            batch_size=batch_size,
            augmentation=augmentation,
            balance=balance,
            folds=folds,
            fold=fold,
        )

    @property
    def image_size(self) -> int:
        """8 pixels."""
        return 8

    @property
    def class_names(self) -> list[str]:
        """The digits, or those that ``classes`` keeps."""
        return self.choose_classes([str(digit) for digit in range(10)])

    def load(self) -> Collection:
        """Load the images; the test set of the original is not among them."""
        from sklearn.datasets import (
            load_digits,
        )  # takes a second to import, which only this data set needs

        digits = load_digits()
        rows, labels = self.choose_images(digits.target.tolist())
        pixels = (digits.images[rows, None] * (255 / 16)).round().astype(np.uint8)
        return Collection(pixels, labels, pixel_digests(pixels), [f"optdigits/{row:04d}" for row in rows])
