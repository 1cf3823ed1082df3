"""Where data enter: read images, split them, vary them, hand them out in batches.

Its names are imported on first use, so that retrieval can read images without importing Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.augmentation import Augmentation as Augmentation
    from datamodules.augmentation import BaseAugmentation as BaseAugmentation
    from datamodules.base import ImageDataModule as ImageDataModule
    from datamodules.corrections import CorrectionsDataModule as CorrectionsDataModule
    from datamodules.corrupting_augmentation import CorruptingAugmentation as CorruptingAugmentation
    from datamodules.dataset import Batch as Batch
    from datamodules.digits import DigitsDataModule as DigitsDataModule
    from datamodules.errors import UserError as UserError
    from datamodules.image_folder import ImageFolderDataModule as ImageFolderDataModule
    from datamodules.line_augmentation import LineAugmentation as LineAugmentation
    from datamodules.mnist import MNISTDataModule as MNISTDataModule
    from datamodules.optdigits import OptDigitsDataModule as OptDigitsDataModule
    from datamodules.semeion import SemeionDataModule as SemeionDataModule
    from datamodules.strings import StringsDataModule as StringsDataModule
    from datamodules.torchvision_augmentation import TorchvisionAugmentation as TorchvisionAugmentation

_MODULES = {
    "Augmentation": "augmentation",
    "BaseAugmentation": "augmentation",
    "CorruptingAugmentation": "corrupting_augmentation",
    "Batch": "dataset",
    "CorrectionsDataModule": "corrections",
    "DigitsDataModule": "digits",
    "ImageDataModule": "base",
    "UserError": "errors",
    "ImageFolderDataModule": "image_folder",
    "LineAugmentation": "line_augmentation",
    "MNISTDataModule": "mnist",
    "OptDigitsDataModule": "optdigits",
    "SemeionDataModule": "semeion",
    "StringsDataModule": "strings",
    "TorchvisionAugmentation": "torchvision_augmentation",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"datamodules.{_MODULES[name]}"), name)
