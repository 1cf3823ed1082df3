"""A folder of images with a subfolder per class."""

from pathlib import Path

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from PIL import ImageChops

from datamodules.augmentation import Augmentation
from datamodules.base import Collection, ImageDataModule
from datamodules.cache import DecodedImages, default_cache_dir, load_images
from datamodules.errors import UserError, reason
from datamodules.images import (
    EXTENSIONS,
    ImageError,
    find_images,
    list_files,
    natural_sorted,
    passed_over,
    read_image,
)


class ImageFolderDataModule(ImageDataModule):
    """Images in a folder per class: ``root/cat/1.jpg``, ``root/dog/2.png``.

    The classes are the subfolders, in natural order (1, 2, 10); hidden files and folders are ignored.

    Args:
        root: The folder of class folders.
        test_root: Another such folder, with the same classes, for ``test``; without it the validation images
            are used.
        image_size: Images are resized to this many pixels square when they are decoded.
        in_channels: 1 reads images as grey, 3 as colour.
        classes: Names of the classes to keep, in this order; None keeps all.
        val_fraction: Share of the images that are held out for validation, in (0, 1), class by class.
        split_seed: Another seed gives another split; the training seed does not matter to it.
        split_file: A ``split.csv`` of an earlier run, to use its split instead.
        batch_size: Images a step and process.
        augmentation: How training images are varied; null leaves them as they are.
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
        image_size: int = 100,
        in_channels: int = 1,
        classes: list[str | int] | None = None,
        val_fraction: float = 0.2,
        split_seed: int = 42,
        split_file: str | None = None,
        batch_size: int = 64,
        augmentation: Augmentation | None = Augmentation(),  # noqa: B008 - frozen
        on_unreadable: str = "error",
        cache_dir: str | None = None,
        max_ram_share: float = 0.25,
    ) -> None:
        super().__init__(in_channels, classes, val_fraction, split_seed, split_file, batch_size, augmentation)
        if image_size < 1:
            raise UserError(f"image_size must be at least 1 pixel, got {image_size}")
        if on_unreadable not in ("error", "skip"):
            raise UserError(f"on_unreadable must be error or skip, got {on_unreadable!r}")
        self.save_hyperparameters(ignore=["augmentation"], logger=False)
        self.root = Path(root)
        self.test_root = None if test_root is None else Path(test_root)
        self._image_size = image_size
        self.on_unreadable = on_unreadable
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir)
        self.max_ram_share = max_ram_share

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self._image_size

    @property
    def class_names(self) -> list[str]:
        """Names of the class folders, in natural order, or as ``classes`` has them.

        Raises:
            UserError: There is no such folder, or it has fewer than two class folders.
        """
        return self.choose_classes(_class_folders(self.root))

    def prepare_data(self) -> None:
        """Decode the images into the cache, once for all processes of a machine."""
        self._decode(self.root)
        if self.test_root is not None:
            self._decode(self.test_root)

    def load(self) -> Collection:
        """Load all images of the root."""
        collection = self._load(self.root)
        self._tell_of_passed_over(self.root)
        self._tell_of_colour(self.root)
        return collection

    def load_test(self) -> Collection | None:
        """Load all images of the test root, which must have the same classes."""
        if self.test_root is None:
            return None
        found = set(_class_folders(self.test_root))
        missing = [name for name in self.class_names if name not in found]
        unknown = natural_sorted(found - set(self.class_names)) if self.classes is None else []
        for what, names in (
            ("lacks the class folder", missing),
            ("has the unknown class folder", unknown),
        ):
            if names:
                raise UserError(
                    f"{self.test_root} {what} {', '.join(names)}: "
                    f"a test set needs the classes of {self.root}, {', '.join(self.class_names)}"
                )
        return self._load(self.test_root)

    def _files(self, root: Path) -> tuple[list[Path], list[int]]:
        """All image files, class by class, and their labels."""
        paths: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(self.class_names):
            files = find_images(root / name)
            if not files:
                raise UserError(
                    f"{root / name}: no image in this class folder ({', '.join(sorted(EXTENSIONS))}); "
                    "add some or remove the folder"
                )
            paths += files
            labels += [label] * len(files)
        return paths, labels

    def _decode(self, root: Path) -> tuple[list[Path], list[int], DecodedImages]:
        """The files that can be read, their labels and pixels."""
        paths, labels = self._files(root)
        # Each process of this machine has pixels of its own in memory; mapped ones they share.
        share = self.max_ram_share / (1 if self.trainer is None else self.trainer.num_devices)
        decoded = load_images(root, paths, self.image_size, self.in_channels, self.cache_dir, share)
        if decoded.errors and self.on_unreadable == "error":
            broken = "\n  ".join(decoded.errors.values())
            raise UserError(
                f"{len(decoded.errors)} of {len(paths)} images in {root} can't be read; "
                f"mend or remove them, or go on without them by --data.on_unreadable skip:\n  {broken}"
            )
        readable = [row for row in range(len(paths)) if row not in decoded.errors]
        return [paths[row] for row in readable], [labels[row] for row in readable], decoded

    def _load(self, root: Path) -> Collection:
        paths, labels, decoded = self._decode(root)
        if decoded.errors:
            broken = "\n  ".join(decoded.errors.values())
            rank_zero_info(f"Skipped {len(decoded.errors)} images that can't be read:\n  {broken}")
        empty = set(range(len(self.class_names))) - set(labels)
        if empty:
            folders = ", ".join(str(root / self.class_names[label]) for label in sorted(empty))
            raise UserError(f"{folders}: no image in this class folder can be read")
        names = [path.relative_to(root).as_posix() for path in paths]
        return Collection(decoded.pixels, np.array(labels), decoded.digests, names)

    @rank_zero_only
    def _tell_of_passed_over(self, root: Path) -> None:
        """Say which files below the root aren't taken for images of a class."""
        loose = [entry for entry in root.iterdir() if entry.is_file() and not entry.name.startswith(".")]
        passed = [path for name in self.class_names for path in list_files(root / name)[1]]
        note = passed_over(root, [*sorted(loose), *passed])
        if note is not None:
            rank_zero_info(note)

    @rank_zero_only
    def _tell_of_colour(self, root: Path) -> None:
        """Say so where grey is taken from images that have colour, judging by the first of each class."""
        if self.in_channels == 3:
            return
        for name in self.class_names:
            try:
                red, green, blue = read_image(find_images(root / name)[0], channels=3).split()
            except ImageError:
                continue
            if ImageChops.difference(red, green).getbbox() or ImageChops.difference(green, blue).getbbox():
                rank_zero_info(f"Colour images in {root} are read as grey; keep it with --data.in_channels 3.")
                return


def _class_folders(root: Path) -> list[str]:
    try:
        folders = [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(
            f"{root}: {reason(error)}; name the folder that holds the class folders with --data.root"
        ) from error
    if not folders:
        raise UserError(f"{root}: no class folders; expected a folder per class, such as {root / 'cat'}")
    return natural_sorted(folders)
