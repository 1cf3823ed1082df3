"""A folder of images with a subfolder per class."""

import contextlib
import functools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from PIL import Image

from datamodules.augmentation import Augmentation, BaseAugmentation
from datamodules.base import ImageDataModule
from datamodules.cache import DecodedImages, default_cache_dir, load_images
from datamodules.dataset import Collection
from datamodules.errors import UserError, reason
from datamodules.images import (
    ImageError,
    find_images,
    has_content,
    list_files,
    natural_sorted,
    no_images,
    passed_over,
    read_image,
)
from datamodules.layout import subset_folders

LOOK = 256  # pixels of a side of the images by which a collection is judged


class ImageFolderDataModule(ImageDataModule):
    """Images in a folder per class: ``root/cat/1.jpg``, ``root/dog/2.png``.

    The classes are the subfolders, in natural order (1, 2, 10); hidden files and folders are ignored. A root that holds
    ``train/``, ``val/`` and ``test/``, each with the class folders in it, is taken as it is split (``subset_folders``).

    Args:
        root: The folder of class folders.
        val_root: Another such folder, with the same classes, to validate on; all of the root is trained on then.
        test_root: Another such folder, with the same classes, for ``test``; without it the validation images
            are used.
        image_size: Images are resized to this many pixels square when they are decoded.
        in_channels: 1 reads images as grey, 3 as colour; null is what they are, judging by the first of each class.
        classes: Names of the classes to keep, in this order; None keeps all.
        val_fraction: Share of the images that are held out for validation, in (0, 1), class by class.
        split_seed: Another seed gives another split; the training seed does not matter to it.
        split_file: A ``split.csv`` of an earlier run, to use its split instead.
        batch_size: Images a step and process.
        augmentation: How training images are varied; null leaves them as they are.
        balance: Train on each class equally often, those of rare classes several times an epoch.
        folds: Cross-validation by so many parts of the images; None or 0 holds out ``val_fraction``.
        fold: Which of them is validated, from 1; null lets ``fit`` train a network for each.
        on_unreadable: What to do with files that are broken or no images: ``error`` ends the command with the
            list of them, ``skip`` goes on without them and lists them.
        cache_dir: Where the decoded images are kept for the next start; null is ``~/.cache/digitdoodle``.
        max_ram_share: Decoded images that take a larger share of the installed memory than this, in all processes
            of a machine together, stay on disk and are mapped.

    Raises:
        UserError: An argument is out of its range.
    """

    def __init__(
        self,
        root: str,
        test_root: str | None = None,
        val_root: str | None = None,
        image_size: int = 100,
        in_channels: int | None = None,
        classes: list[str | int] | None = None,
        val_fraction: float = 0.2,
        split_seed: int = 42,
        split_file: str | None = None,
        batch_size: int = 64,
        augmentation: BaseAugmentation | None = Augmentation(),
        balance: bool = False,
        folds: int | None = None,
        fold: int | None = None,
        on_unreadable: str = "error",
        cache_dir: str | None = None,
        max_ram_share: float = 0.25,
    ) -> None:
        super().__init__(
            in_channels=1 if in_channels is None else in_channels,
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
        if image_size < 1:
            raise UserError(f"image_size must be at least 1 pixel, got {image_size}")
        if on_unreadable not in ("error", "skip"):
            raise UserError(f"on_unreadable must be error or skip, got {on_unreadable!r}")
        self._looks_for_colour = in_channels is None
        self.root = Path(root)
        subsets = subset_folders(self.root, strict=True)
        self.train_root = subsets.get("train", self.root)
        self.val_root = subsets.get("val") if val_root is None else Path(val_root)
        self.test_root = subsets.get("test") if test_root is None else Path(test_root)
        self._image_size = image_size
        self.on_unreadable = on_unreadable
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir)
        self.max_ram_share = max_ram_share

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self._image_size

    @property
    def in_channels(self) -> int:
        """Channels of the images: 1 for grey, 3 for colour."""
        if self._looks_for_colour:
            self._looks_for_colour = False
            self._in_channels = 3 if any(map(_has_colour, self.first_images)) else 1
            self.hparams["in_channels"] = self._in_channels  # a checkpoint says what was found
            if self._in_channels == 3:
                rank_zero_info("The images have colour, which is kept; --data.in_channels 1 reads them as grey.")
        return self._in_channels

    @functools.cached_property
    def first_images(self) -> list[Image.Image]:
        """The first image of each class that can be read, in colour, of some of the classes where there are many.

        They are read no larger than they must be to have sides of ``LOOK`` pixels, if they have as many, and to be
        larger than ``image_size``, if they are.
        """
        names, side = self.class_names, max(LOOK, self.image_size + 1)
        found = []
        for name in names[:: math.ceil(len(names) / 20)]:
            for path in find_images(self.train_root / name)[:1]:
                with contextlib.suppress(ImageError):
                    image = read_image(path, channels=3, side=4 * side)  # long: some are four times as long as high
                    found.append(image.reduce(max(1, min(image.size) // side)))
        return found

    @property
    def class_names(self) -> list[str]:
        """Names of the class folders, in natural order, or as ``classes`` has them.

        Raises:
            UserError: There is no such folder, or it has fewer than two class folders.
        """
        return self.choose_classes(class_folders(self.train_root))

    def prepare_data(self) -> None:
        """Decode the images into the cache, once for all processes of a machine."""
        folders, tested = self._learnt_from(), self._tested_on()
        self._decode(*folders)
        if tested is not None:
            self._decode(tested)

    def _learnt_from(self) -> list[Path]:
        """Where the images to train on and to validate on are: one folder, if the split is to be made."""
        if self.val_root is None:
            return [self.train_root]
        self._check_other("val_root", self.val_root, "have some of the images held out")
        return [self.train_root, self.val_root]

    def _tested_on(self) -> Path | None:
        """Where the images to test on are, if they are not those that are validated on."""
        if self.test_root is not None:
            self._check_other("test_root", self.test_root, "test on the validation images")
        return self.test_root

    def load(self) -> Collection:
        """Load all images of the root, and of the validation root."""
        folders = self._learnt_from()
        if self.train_root != self.root or self.val_root is not None:
            validated = "a share of them" if self.val_root is None else self.val_root
            tested = "" if self.test_root is None else f", tested on {self.test_root}"
            rank_zero_info(f"Trained on the images of {self.train_root}, validated on {validated}{tested}.")
        collection = self._load(*folders)
        for folder in folders:
            self._tell_of_passed_over(folder)
        return collection

    def load_test(self) -> Collection | None:
        """Load all images of the test root, which must have the same classes."""
        folder = self._tested_on()
        if folder is None:
            return None
        self._tell_of_passed_over(folder)
        return self._load(folder)

    def _check_other(self, option: str, folder: Path, without: str) -> None:
        """Raise unless a folder has the class folders of the one that is trained on, and is another one."""
        if folder.resolve() == self.train_root.resolve():
            raise UserError(
                f"{option} {folder} is the folder that is trained on: name another one, or leave it out to {without}"
            )
        found = set(class_folders(folder))
        missing = [name for name in self.class_names if name not in found]
        unknown = natural_sorted(found - set(self.class_names)) if self.classes is None else []
        for what, names in (
            ("lacks the class folder", missing),
            ("has the unknown class folder", unknown),
        ):
            if names:
                raise UserError(
                    f"{folder} {what} {', '.join(names)}: "
                    f"it needs the classes of {self.train_root}, {', '.join(self.class_names)}"
                )

    def _files(self, root: Path) -> list[tuple[Path, int]]:
        """All image files, class by class, and their labels."""
        found: list[tuple[Path, int]] = []
        for label, name in enumerate(self.class_names):
            files = find_images(root / name)
            if not files:
                raise UserError(f"{no_images(root / name)}; add some or remove the folder")
            found += [(path, label) for path in files]
        return found

    def _named_from(self, folders: Sequence[Path]) -> Path:
        """The folder that names of images are relative to: the root, unless they are those of ``test`` alone."""
        return self.root if folders[0] == self.train_root else folders[0]

    def _decode(self, *folders: Path) -> tuple[list[tuple[Path, int, Path]], DecodedImages]:
        """The files that can be read, each with its label and the one of the folders it is from, and their pixels."""
        found = [(path, label, folder) for folder in folders for path, label in self._files(folder)]
        paths = [path for path, _, _ in found]
        root = self._named_from(folders)
        # Each process of this machine has pixels of its own in memory; mapped ones they share.
        share = self.max_ram_share / (1 if self.trainer is None else self.trainer.num_devices)
        kept = self.classes or ()
        decoded = load_images(root, paths, self.image_size, self.in_channels, self.cache_dir, share, kept)
        if decoded.errors and self.on_unreadable == "error":
            broken = "\n  ".join(decoded.errors.values())
            raise UserError(
                f"{len(decoded.errors)} of {len(paths)} images in {root} can't be read; "
                f"repair or remove them, or go on without them by --data.on_unreadable skip:\n  {broken}"
            )
        return [file for row, file in enumerate(found) if row not in decoded.errors], decoded

    def _load(self, *folders: Path) -> Collection:
        found, decoded = self._decode(*folders)
        labels = [label for _, label, _ in found]
        if decoded.errors:
            broken = "\n  ".join(decoded.errors.values())
            rank_zero_info(f"Skipped {len(decoded.errors)} images that can't be read:\n  {broken}")
        empty = set(range(len(self.class_names))) - set(labels)
        if empty:
            named = ", ".join(str(folders[0] / self.class_names[label]) for label in sorted(empty))
            raise UserError(f"{named}: no image in this class folder can be read")
        root = self._named_from(folders)
        names = [_relative(path, root) for path, _, _ in found]
        of_others = np.array([folder is folders[1] for _, _, folder in found]) if len(folders) > 1 else None
        return Collection(decoded.pixels, np.array(labels), decoded.digests, names, of_others)

    @rank_zero_only
    def _tell_of_passed_over(self, root: Path) -> None:
        """Say which files below the root aren't taken for images of a class."""
        loose = [entry for entry in root.iterdir() if entry.is_file() and not entry.name.startswith(".")]
        passed = [path for name in self.class_names for path in list_files(root / name)[1]]
        note = passed_over(root, [*sorted(loose), *passed])
        if note is not None:
            rank_zero_info(note)


def _relative(path: Path, root: Path) -> str:
    """What a file is called in a split, with forward slashes."""
    try:
        return Path(os.path.relpath(path, root)).as_posix()
    except ValueError:  # on another drive of Windows
        return path.as_posix()


def _has_colour(image: Image.Image) -> bool:
    """Whether more than a hundredth of an image is clearly coloured: a tint of paper or noise is none."""
    pixels = np.asarray(image)
    return bool((np.ptp(pixels, axis=2) > 32).mean() > 0.01)


def class_folders(root: Path) -> list[str]:
    """Names of the class folders in a folder, in natural order; hidden ones are none.

    Raises:
        UserError: There is no such folder, or it has none.
    """
    try:
        folders = [entry.name for entry in root.iterdir() if has_content(entry.name) and entry.is_dir()]
    except OSError as error:
        raise UserError(
            f"{root}: {reason(error)}; name the folder that holds the class folders with --data.root"
        ) from error
    if not folders:
        raise UserError(f"{root}: no class folders; expected a folder per class, such as {root / 'cat'}")
    return natural_sorted(folders)
