"""MNIST, the official 60,000 + 10,000 handwritten digits."""

from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info
from torchvision.datasets import MNIST

from datamodules.augmentation import Augmentation, BaseAugmentation
from datamodules.base import ImageDataModule
from datamodules.dataset import Collection
from datamodules.errors import UserError, last_line
from datamodules.splits import pixel_digests

_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class MNISTDataModule(ImageDataModule):
    """MNIST (LeCun et al. 1998, http://yann.lecun.com/exdb/mnist): grey, 28×28, ten digits.

    Training and validation are split from the official 60,000 training images; ``test`` uses the official 10,000.

    Args:
        root: Folder that holds ``MNIST/raw``; downloaded into it where it isn't there.
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
        """28 pixels."""
        return 28

    @property
    def class_names(self) -> list[str]:
        """The digits, or those that ``classes`` keeps."""
        return self.choose_classes([str(digit) for digit in range(10)])

    def prepare_data(self) -> None:
        """Download the files where they are missing, once for all processes of a machine.

        Raises:
            UserError: They are missing and can't be downloaded, or are damaged.
        """
        if all((self.root / "MNIST" / "raw" / file).is_file() for file in _FILES):
            return
        rank_zero_info(f"Downloading MNIST to {self.root / 'MNIST' / 'raw'}")
        try:
            MNIST(str(self.root), download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"MNIST is not in {self.root / 'MNIST' / 'raw'} and can't be downloaded ({last_line(error)}); "
                f"copy {', '.join(_FILES)} there, or name the folder above MNIST/raw with --data.root "
                "(--data.replay.root of corrections, --data.digits.root of lines)"
            ) from error

    def load(self) -> Collection:
        """Load the official training images."""
        return self._load(train=True)

    def load_test(self) -> Collection:
        """Load the official test images."""
        return self._load(train=False)

    def _load(self, train: bool) -> Collection:
        try:
            dataset = MNIST(str(self.root), train=train)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            raise UserError(
                f"{self.root / 'MNIST' / 'raw'}: damaged MNIST files ({last_line(error)}); remove them and start again"
            ) from error
        rows, labels = self.choose_images(dataset.targets.tolist())
        pixels = dataset.data.numpy()[rows, None]
        return Collection(
            pixels,
            labels,
            pixel_digests(pixels),
            [f"{'train' if train else 't10k'}/{row:05d}" for row in rows],
        )
