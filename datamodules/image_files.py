"""Image files without labels, to be predicted."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch.utils.data import DataLoader

from datamodules.dataset import Batch, BatchDataset
from datamodules.images import ImageError, named_images, read_image
from datamodules.loading import ShardSampler, keep_batch
from datamodules.normalizer import DigitNormalizer, Seen, max_side, normalize


class ImageFileDataset(BatchDataset):
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

    def batch(self, rows: Sequence[int]) -> Batch:
        """Decode a batch in threads; the labels are -1."""
        with ThreadPoolExecutor() as pool:
            images = np.stack(list(pool.map(self._read, rows)))
        labels = torch.full((len(rows),), -1)
        return Batch(torch.from_numpy(images), labels, torch.as_tensor(rows))

    def _read(self, index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
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


class ImageFilesDataModule(LightningDataModule):
    """Files and folders of images, to be predicted by a trained classifier.

    Args:
        images: Image files, and folders that are searched for them.
        class_names: Names of the classes that the classifier tells apart.
        image_size: Images are resized to this many pixels square.
        in_channels: 1 gives grey images, 3 colour.
        batch_size: Images at once.
        normalizer: State of the ``DigitNormalizer`` that belongs to the classifier; None resizes images, no more.
    """

    def __init__(
        self,
        images: list[str],
        class_names: list[str],
        image_size: int,
        in_channels: int,
        batch_size: int = 256,
        normalizer: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer files than processes
        self.images = images
        self.class_names = class_names
        self.image_size = image_size
        self.in_channels = in_channels
        self.batch_size = batch_size
        self.normalizer = None if normalizer is None else DigitNormalizer.from_dict(normalizer)
        self.predict_set: ImageFileDataset | None = None

    def setup(self, stage: str) -> None:
        """Find the files; a file that is named is taken whatever its extension.

        Raises:
            UserError: One of them isn't there, or a folder has no images.
        """
        paths, notes = named_images(map(Path, self.images))
        for note in notes:
            rank_zero_info(note)
        self.predict_set = ImageFileDataset(paths, self.image_size, self.in_channels, self.normalizer)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Batches of this process's share, in the order of the files."""
        assert self.predict_set is not None
        rank, world_size = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        sampler = ShardSampler(len(self.predict_set), rank, world_size, shuffle_seed=None)
        return DataLoader(self.predict_set, batch_size=self.batch_size, sampler=sampler, collate_fn=keep_batch)
