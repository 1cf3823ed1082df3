"""Image files without labels, to be predicted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader

from datamodules.dataset import Batch, BatchDataset
from datamodules.images import named_images
from datamodules.loading import ShardSampler, keep_batch
from datamodules.normalizer import DigitNormalizer
from datamodules.picture_files import PictureFiles


class ImageFileDataset(PictureFiles, BatchDataset):
    """Image files in batches; the arguments are those of ``PictureFiles``."""

    def batch(self, rows: Sequence[int]) -> Batch:
        """Decode a batch; the labels are -1."""
        return Batch(torch.from_numpy(self.pixels(rows)), torch.full((len(rows),), -1), torch.as_tensor(rows))


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
