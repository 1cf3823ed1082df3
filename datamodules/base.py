"""The LightningDataModule that all collections share: split, batches, augmentation."""

import inspect
import os
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.augmentation import BaseAugmentation
from datamodules.dataset import OUTLIER, Batch, BatchDataset, Collection, ImageDataset
from datamodules.errors import UserError
from datamodules.imports import class_path
from datamodules.loading import batches, repeat_rare
from datamodules.normalizer import DigitNormalizer
from datamodules.splits import read_split, split, split_into_folds, write_split


class BaseDataModule(LightningDataModule):
    """What our datamodules share: sets and their batches, and the arguments that a checkpoint keeps.

    A subclass gives ``class_names``, ``image_size`` and ``in_channels``, fills the sets in ``setup``, and gives
    ``augment`` and ``save_split``.

    Args:
        val_fraction: Share that is held out for validation, in (0, 1).
        split_seed: Another seed gives another split; the training seed does not matter to it.
        batch_size: Images a step and process.
        augmentation: How training images are varied; None leaves them as they are.

    Raises:
        UserError: An argument is out of its range.
    """

    train_set: BatchDataset | None
    val_set: BatchDataset | None
    test_set: BatchDataset | None

    def __init__(
        self, val_fraction: float, split_seed: int, batch_size: int, augmentation: BaseAugmentation | None
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        taken = inspect.signature(type(self)).parameters
        for name in self.hparams.keys() - taken.keys():
            del self.hparams[name]
        for name, value in list(self.hparams.items()):
            if isinstance(value, BaseDataModule):
                self.hparams[name] = _describe(value, dict(value.hparams))
            elif name == "augmentation" and value is not None:
                if not is_dataclass(value):
                    raise UserError(f"{type(value).__name__} must be a dataclass: a checkpoint keeps its settings")
                self.hparams[name] = _describe(value, asdict(value))  # type: ignore[arg-type]
        if not 0 < val_fraction < 1:
            raise UserError(f"val_fraction must lie in (0, 1), got {val_fraction}")
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}")
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.train_set = self.val_set = self.test_set = None

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in the order of the labels."""
        raise NotImplementedError

    @property
    def image_size(self) -> int:
        """Height of the images, in pixels."""
        raise NotImplementedError

    @property
    def in_channels(self) -> int:
        """Channels of the images: 1 for grey, 3 for colour."""
        raise NotImplementedError

    def augment(self, batch: Batch, epoch: int) -> Batch:
        """Give a batch of training images the looks that they have in an epoch."""
        raise NotImplementedError

    def save_split(self, path: Path) -> None:
        """Write ``split.csv``: file, label and subset of every image."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of training images, uint8, in a new order each epoch."""
        return self._batches(self.train_set, shuffle_seed=run_seed())

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of validation images, uint8, in order."""
        return self._batches(self.val_set, shuffle_seed=None)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Batches of test images, uint8, in order."""
        return self._batches(self.test_set, shuffle_seed=None)

    def _batches(
        self,
        dataset: BatchDataset | None,
        shuffle_seed: int | None,
        labels: npt.NDArray[np.int64] | None = None,
    ) -> DataLoader[Batch]:
        assert dataset is not None
        if self.trainer is None:
            return batches(dataset, self.batch_size, shuffle_seed, labels=labels)
        # Lightning looks for a sampler of its own kind to make the batches that are overfitted the same in each epoch.
        reshuffle = not getattr(self.trainer, "overfit_batches", 0)
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return batches(dataset, self.batch_size, shuffle_seed, rank, world_size, reshuffle, labels)


class ImageDataModule(BaseDataModule):
    """Split, batches and augmentation of a collection that a subclass loads.

    A subclass gives ``class_names``, ``image_size``, ``load`` and, where there is an official test set,
    ``load_test``. The first two may read directory names but no image, since the network is built from them.

    Args:
        in_channels: 1 for grey, 3 for colour.
        classes: Names of the classes to keep, in this order; None keeps all.
        val_fraction: Share of the images that are held out for validation, in (0, 1), class by class.
        split_seed: Another seed gives another split; the training seed does not matter to it.
        split_file: A ``split.csv`` of an earlier run, to use its split instead.
        batch_size: Images a step and process.
        augmentation: How training images are varied; None leaves them as they are.
        balance: Train on each class equally often: an epoch is as long as without, and takes the images of rare classes
            several times, each time augmented anew, and others of the common classes each time. Images that show none
            of the classes count as a class of their own.
        folds: Cross-validation: the images are split into so many parts, class by class, of which one is validated and
            the others are trained on; None or 0 holds out ``val_fraction``.
        fold: Which part is validated, from 1; None lets ``fit`` train a network for each.

    Raises:
        UserError: An argument is out of its range.
    """

    train_set: ImageDataset | None
    val_set: ImageDataset | None
    test_set: ImageDataset | None

    def __init__(
        self,
        in_channels: int = 1,
        classes: Sequence[str | int] | None = None,
        val_fraction: float = 0.2,
        split_seed: int = 42,
        split_file: str | None = None,
        batch_size: int = 64,
        augmentation: BaseAugmentation | None = None,
        balance: bool = False,
        folds: int | None = None,
        fold: int | None = None,
    ) -> None:
        super().__init__(val_fraction, split_seed, batch_size, augmentation)
        if in_channels not in (1, 3):
            raise UserError(f"in_channels must be 1 (grey) or 3 (colour), got {in_channels}")
        if folds and folds < 2:
            raise UserError(f"folds must be at least 2, or 0 for none, got {folds}")
        if fold is not None and not 1 <= fold <= (folds or 0):
            raise UserError(f"fold must be one of the folds, 1 to {folds or 0}, got {fold}; data.folds says how many")
        if folds and split_file is not None:
            raise UserError("folds and split_file both say what is validated: leave one of them out")
        self.folds, self.fold = folds, fold
        self._in_channels = in_channels
        self.classes = None if classes is None else [str(name) for name in classes]
        self.split_file = split_file
        self.balance = balance
        self._drawn: ImageDataset | None = None  # what the batches of training are drawn from
        self._parameters: tuple[int, Tensor] | None = None

    @property
    def in_channels(self) -> int:
        """Channels of the images: 1 for grey, 3 for colour."""
        return self._in_channels

    def load(self) -> Collection:
        """Load the images that are split into training and validation."""
        raise NotImplementedError

    def load_test(self) -> Collection | None:
        """Load the official test set; None where there is none."""
        return None

    @property
    def to_replay(self) -> "ImageDataModule":
        """The images that keep a network, trained on these, from forgetting them; others where these take long."""
        return self

    def choose_classes(self, available: list[str]) -> list[str]:
        """Those of the available classes that ``classes`` keeps, in its order.

        Raises:
            UserError: ``classes`` names one that isn't there, or one twice, or fewer than two.
        """
        chosen = available if self.classes is None else self.classes
        unknown = [name for name in chosen if name not in available]
        if unknown:
            raise UserError(f"unknown class {', '.join(unknown)}: the classes here are {', '.join(available)}")
        if len(set(chosen)) != len(chosen):
            raise UserError(f"classes names a class twice: {', '.join(chosen)}")
        if len(chosen) < 2:
            raise UserError(f"a classifier needs at least two classes, got {', '.join(chosen) or 'none'}")
        return chosen

    def choose_images(self, names: Sequence[str | int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Those of N images, each with its class's name, that ``class_names`` keeps: (M,), their rows and labels."""
        label_of = {name: label for label, name in enumerate(self.class_names)}
        labels = np.array([label_of.get(str(name), -1) for name in names])
        rows = np.flatnonzero(labels >= 0)
        return rows, labels[rows]

    def setup(self, stage: str) -> None:
        """Load and split the images; the result is the same in every stage and process."""
        if stage == "test" and self.test_set is None:
            collection = self.load_test()
            if collection is not None:
                self.test_set = ImageDataset(collection, np.flatnonzero(collection.labels != OUTLIER))
                return
        if self.train_set is None:
            collection = self.load()
            in_validation = self._split(collection) & (collection.labels != OUTLIER)
            self.train_set = ImageDataset(collection, np.flatnonzero(~in_validation))
            self.val_set = ImageDataset(collection, np.flatnonzero(in_validation))
            self._drawn = self.train_set
            if self.balance:
                self._drawn = ImageDataset(collection, self.train_set.rows[repeat_rare(self.train_set.labels)])
        if stage == "test" and self.test_set is None:
            rank_zero_info("There is no test set: the validation images are used.")
            self.test_set = self.val_set

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of training images, uint8, in a new order each epoch; with ``balance`` of each class equally many."""
        assert self._drawn is not None
        return self._batches(self._drawn, run_seed(), self._drawn.labels if self.balance else None)

    def _split(self, collection: Collection) -> npt.NDArray[np.bool_]:
        if self.split_file is None and self.folds:
            in_validation = self._validated_fold(collection)
        elif self.split_file is None and collection.in_validation is not None:
            in_validation = collection.in_validation
            trained = {image.tobytes() for image in collection.digests[~in_validation]}
            copies = sum(image.tobytes() in trained for image in collection.digests[in_validation])
            if copies:
                rank_zero_info(f"{copies} validation images are copies of training images: their score is too good.")
        elif self.split_file is None:
            in_validation = split(collection.labels, collection.digests, self.val_fraction, self.split_seed)
        else:
            in_validation = read_split(Path(self.split_file), collection.names, self._labels(collection))
        for side, rows in (("train on", ~in_validation), ("validate on", in_validation)):
            missing = set(range(len(self.class_names))) - set(collection.labels[rows].tolist())
            if missing:
                names = ", ".join(self.class_names[label] for label in sorted(missing))
                raise UserError(f"no image is left to {side} of class {names}: it needs more different images")
        return in_validation

    def _validated_fold(self, collection: Collection) -> npt.NDArray[np.bool_]:
        """(N,), bool: the images of the fold."""
        if collection.in_validation is not None:
            raise UserError("data.folds splits the images, but these come with others to validate on: leave one out")
        if self.fold is None:
            raise UserError(f"name one of the {self.folds} folds to validate on: data.fold, from 1")
        assert self.folds is not None
        fold_of = split_into_folds(collection.labels, collection.digests, self.folds, self.split_seed)
        for label, name in enumerate(self.class_names):
            found = len(set(fold_of[collection.labels == label]))
            if found < self.folds:
                raise UserError(f"class {name} has {found} different images, too few for {self.folds} folds")
        validated: npt.NDArray[np.bool_] = fold_of == self.fold
        return validated

    def save_split(self, path: Path) -> None:
        """Write ``split.csv``: file, label and subset of every image, for ``split_file`` to read."""
        assert self.train_set is not None
        assert self.val_set is not None
        collection = self.train_set.collection
        in_validation = np.zeros(len(collection.labels), np.bool_)
        in_validation[self.val_set.rows] = True
        write_split(path, collection.names, self._labels(collection), in_validation)

    def _labels(self, collection: Collection) -> list[str]:
        """Each image's class by name; empty where it shows none."""
        names = self.class_names  # a folder is listed for them
        return ["" if label == OUTLIER else names[label] for label in collection.labels]

    def fit_normalizer(self) -> DigitNormalizer | None:
        """How digits lie in the images that are trained and validated on; None if they are not digits, or the like."""
        assert self.train_set is not None
        collection = self.train_set.collection
        return DigitNormalizer.fit(collection.pixels, np.flatnonzero(collection.labels != OUTLIER))

    def augmentation_parameters(self, epoch: int) -> Tensor | None:
        """(N, 5 or 55), float32: this epoch's parameters of every training image; see ``Augmentation.draw``."""
        if self.augmentation is None or self._drawn is None:
            return None
        if self._parameters is None or self._parameters[0] != epoch:
            self._parameters = epoch, self.augmentation.draw(run_seed(), epoch, len(self._drawn))
        return self._parameters[1]

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training images, on their device; leave all others as they are."""
        if self.trainer is None or not self.trainer.training:
            return batch
        return self.augment(batch, self.trainer.current_epoch)

    def augment(self, batch: Batch, epoch: int) -> Batch:
        """Give a batch of training images the looks that they have in an epoch."""
        parameters = self.augmentation_parameters(epoch)
        if self.augmentation is None or parameters is None:
            return batch
        return batch._replace(images=self.augmentation(batch.images, parameters[batch.indices.cpu()]))


def _describe(part: object, arguments: dict[str, Any]) -> dict[str, Any]:
    """How to build a part again, in plain values."""
    return {"class_path": class_path(type(part)), "init_args": arguments}


def run_seed() -> int:
    """The run's seed, under the name that Lightning's ``seed_everything`` gives it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))
