"""Pictures that a trained network got wrong, together with images of its own, lest it forget them."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from datamodules.augmentation import Augmentation, BaseAugmentation
from datamodules.base import ImageDataModule
from datamodules.dataset import Collection, ImageDataset
from datamodules.errors import UserError
from datamodules.image_folder import class_folders
from datamodules.images import find_images, unreadable
from datamodules.normalizer import DigitNormalizer
from datamodules.picture_files import PictureFiles
from datamodules.splits import pixel_digests, read_rows, split

Pixels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]

BLOCK = 64  # pictures between two steps of the progress bar


class CorrectionsDataModule(ImageDataModule):
    """Pictures in a folder per class, ``root/7/a.png``, seen as a network sees them, among images that it learnt from.

    Training on new images alone makes a network forget the old ones; replaying some of these prevents it (Robins 1995,
    https://doi.org/10.1080/09540099550039318). All pictures are trained on: there are too few to hold some out.
    Validated, and calibrated by, are replayed images that the network was not trained on.

    ``fit --ckpt_path BASE`` takes all arguments but ``root`` from BASE, where they aren't given.

    Args:
        root: The folder of class folders; classes may be missing.
        class_names: Names of the classes that the network tells apart.
        image_size: Side of the network's images, in pixels.
        in_channels: 1 for grey, 3 for colour.
        replay: The images that the network was trained on, or others of the same form and classes.
        normalizer: State of the ``DigitNormalizer`` that belongs to the network; null resizes pictures, no more.
        replayed: How many images are replayed in an epoch, of each class its share: some of them, or all several times,
            each time augmented anew. No more than half as many are validated, the first in the order of the split: of
            those it is sure that a network which had other images beside them was not trained on them.
        repeats: How often a picture is trained on in an epoch, each time augmented anew.
        batch_size: Images a step and process.
        augmentation: How training images are varied; null leaves them as they are.

    Raises:
        UserError: An argument is out of its range, or the images to replay are of another form.
    """

    def __init__(
        self,
        root: str,
        class_names: list[str],
        image_size: int,
        in_channels: int,
        replay: ImageDataModule,
        normalizer: dict[str, Any] | None = None,
        replayed: int = 4_000,
        repeats: int = 10,
        batch_size: int = 128,
        augmentation: BaseAugmentation | None = Augmentation(),
    ) -> None:
        super().__init__(in_channels=in_channels, batch_size=batch_size, augmentation=augmentation)
        if replayed < 1 or repeats < 1:
            raise UserError(f"replayed and repeats must be at least 1, got {replayed} and {repeats}")
        self.root = Path(root)
        self._class_names, self._image_size = list(class_names), image_size
        self.replay = replay.to_replay
        self.normalizer = None if normalizer is None else DigitNormalizer.from_dict(normalizer)
        self.replayed, self.repeats = replayed, repeats
        self._pictures = 0  # how many there are, at the end of the collection
        for name in ("class_names", "image_size", "in_channels"):
            own, theirs = getattr(self, name), getattr(self.replay, name)
            if own != theirs:
                raise UserError(f"the images to replay must have the network's {name}, {own}, but have {theirs}")

    @property
    def image_size(self) -> int:
        """Side of the network's images, in pixels."""
        return self._image_size

    @property
    def class_names(self) -> list[str]:
        """Names of the classes that the network tells apart."""
        return self._class_names

    def prepare_data(self) -> None:
        """Get the images to replay ready, once for all processes of a machine."""
        self.replay.prepare_data()

    def setup(self, stage: str) -> None:
        """Load the pictures and the images to replay: in an epoch, ``replayed`` of these, and each picture repeated."""
        super().setup(stage)
        if self.train_set is not None:
            replayed, pictures = np.split(self.train_set.rows, [-self._pictures])
            rows = np.concatenate([np.resize(replayed, self.replayed), np.repeat(pictures, self.repeats)])
            self._drawn = ImageDataset(self.train_set.collection, rows)

    def load(self) -> Collection:
        """Load the images to replay, and the pictures after them.

        Raises:
            UserError: There are no pictures, or some of an unknown class, or that can't be read.
        """
        self.replay.setup("fit")
        train, val = self.replay.train_set, self.replay.val_set
        assert train is not None
        assert val is not None
        known, (paths, labels) = train.collection, self._find()
        validated, trained = self._some(val, self.replayed // 2), self._some(train, self.replayed)
        rows = np.concatenate([validated, trained])
        self._pictures = len(paths)
        pixels = np.concatenate([known.pixels[rows], self._see(paths)])
        names = [*(f"replay/{known.names[row]}" for row in rows), *map(self._name, paths)]
        in_validation = np.arange(len(pixels)) < len(validated)
        labels = np.concatenate([known.labels[rows], labels])
        return Collection(pixels, labels, pixel_digests(pixels), names, in_validation)

    def _some(self, images: ImageDataset, count: int) -> Rows:
        """Rows of the collection of so many images, of each class its share, the first in the order of the split."""
        if len(images) <= count:
            return images.rows
        digests = images.collection.digests[images.rows]
        return images.rows[split(images.labels, digests, count / len(images), self.replay.split_seed)]

    def _find(self) -> tuple[list[Path], Rows]:
        """The pictures and their labels."""
        folders = class_folders(self.root)
        unknown = [name for name in folders if name not in self.class_names]
        if unknown:
            raise UserError(
                f"{self.root} has the unknown class folder {', '.join(unknown)}: the network tells apart "
                f"{', '.join(self.class_names)}"
            )
        found = [(path, self.class_names.index(name)) for name in folders for path in find_images(self.root / name)]
        if self.split_file is not None:  # of an earlier run: what was kept since then is not part of it
            known = read_rows(Path(self.split_file))
            found = [(path, label) for path, label in found if self._name(path) in known]
        if not found:
            raise UserError(f"{self.root}: no pictures in its class folders to learn from")
        return [path for path, _ in found], np.array([label for _, label in found])

    def _see(self, paths: list[Path]) -> Pixels:
        """(N, C, S, S), uint8: pictures as the network sees them."""
        files = PictureFiles(paths, self.image_size, self.in_channels, self.normalizer)
        with tqdm(total=len(paths), desc="Reading corrections", unit="img", delay=1, leave=False) as progress:
            parts = []
            for start in range(0, len(paths), BLOCK):
                parts.append(files.pixels(range(start, min(start + BLOCK, len(paths)))))
                progress.update(len(parts[-1]))
        if files.errors:
            raise unreadable(list(files.errors.values()), len(paths))
        blank = [str(paths[row].relative_to(self.root)) for row, digits in files.digits.items() if digits == 0]
        if blank:
            raise UserError(f"{self.root}: nothing is seen on {', '.join(blank)}; remove what shows no class")
        return np.concatenate(parts)

    def _name(self, path: Path) -> str:
        return f"corrections/{path.relative_to(self.root).as_posix()}"

    def load_test(self) -> Collection | None:
        """Load the test set of the images that are replayed: what must not be forgotten."""
        return self.replay.load_test()

    def fit_normalizer(self) -> DigitNormalizer | None:
        """The network's own: it sees pictures as before."""
        return self.normalizer
