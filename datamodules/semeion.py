"""Semeion: handwritten digits by people who hook their 1 and cross their 7."""

from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info
from torchvision.datasets import SEMEION
from torchvision.datasets.utils import download_url

from datamodules.augmentation import Augmentation, BaseAugmentation
from datamodules.base import ImageDataModule
from datamodules.dataset import Collection
from datamodules.errors import UserError, last_line, reason
from datamodules.splits import pixel_digests

FILE = "semeion.data"
SIDE = 16
COLUMNS = SIDE**2 + 10 + 1  # pixels, the digit as ten flags, and one that means nothing


class SemeionDataModule(ImageDataModule):
    """Semeion handwritten digits: black or white, 16×16, ten digits, 1,593 images by 80 Italian writers.

    From Buscema 1998, https://doi.org/10.24432/C5SC8V; here light ink is 255 on 0.

    Args:
        root: Folder that holds ``semeion.data``; downloaded into it where it isn't there.
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
        root: str = "data",
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
        self.root = Path(root)

    @property
    def image_size(self) -> int:
        """16 pixels."""
        return SIDE

    @property
    def class_names(self) -> list[str]:
        """The digits, or those that ``classes`` keeps."""
        return self.choose_classes([str(digit) for digit in range(10)])

    def prepare_data(self) -> None:
        """Download the file where it is missing, once for all processes of a machine.

        Raises:
            UserError: It is missing and can't be downloaded.
        """
        path = self.root / FILE
        if path.is_file():
            return
        rank_zero_info(f"Downloading Semeion to {path}")
        try:
            download_url(SEMEION.url, self.root, FILE, SEMEION.md5_checksum)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{path}: no such file, and it can't be downloaded ({last_line(error)}); copy {FILE} "
                "there, or name its folder with --data.root"
            ) from error

    def load(self) -> Collection:
        """Load the images.

        Raises:
            UserError: The file is missing or damaged.
        """
        path = self.root / FILE
        try:
            # All numbers at once: copies of the file have their lines broken in different places.
            table = np.array(path.read_text(encoding="ascii").split(), dtype=np.float32).reshape(-1, COLUMNS)
            if len(table) == 0:
                raise ValueError("it is empty")
        except OSError as error:
            raise UserError(f"{path}: {reason(error)}") from error
        except ValueError as error:
            raise UserError(f"{path}: damaged ({error}); remove it and start again") from error
        rows, labels = self.choose_images(table[:, SIDE**2 : -1].argmax(axis=1).tolist())
        pixels = (255 * table[rows, : SIDE**2]).astype(np.uint8).reshape(-1, 1, SIDE, SIDE)
        return Collection(pixels, labels, pixel_digests(pixels), [f"semeion/{row:04d}" for row in rows])
