"""Transforms of torchvision as augmentation: one image at a time, slower than ``Augmentation``."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from datamodules.augmentation import BaseAugmentation, philox
from datamodules.errors import UserError


@dataclass(frozen=True)
class TorchvisionAugmentation(BaseAugmentation):
    """Any transforms of ``torchvision.transforms.v2`` that leave an image its size.

    Attributes:
        transforms: Names with their arguments, in order, such as ``[{"RandomRotation": {"degrees": 20}}]``.

    Raises:
        UserError: Torchvision has no such transform, or it takes no such arguments.
    """

    transforms: list[dict[str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._build()

    def _build(self) -> nn.Module:
        built: list[nn.Module] = []
        for transform in self.transforms:
            if not isinstance(transform, dict):
                raise UserError(
                    "augmentation.transforms: must be names with their arguments, such as RandomRotation: "
                    f"{{degrees: 20}}, got {transform!r}"
                )
            for name, arguments in transform.items():
                cls = getattr(v2, name, None)
                if not (isinstance(cls, type) and issubclass(cls, v2.Transform)):
                    raise UserError(f"augmentation.transforms: torchvision.transforms.v2 has no {name}")
                try:
                    built.append(cls(**(arguments or {})))
                except (TypeError, ValueError) as error:
                    raise UserError(f"augmentation.transforms: {name}: {error}") from error
        return nn.Sequential(*built)

    def draw(self, seed: int, epoch: int, count: int) -> Tensor:
        """(N, 1), int64: the seed of each sample's transforms."""
        return torch.from_numpy(philox(seed, epoch).integers(2**62, size=(count, 1)))

    def __call__(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Augment each image of a batch by its own seed; see ``BaseAugmentation``.

        Raises:
            UserError: A transform changes the size, doesn't take an image of uint8 pixels, or gives something else.
        """
        transform = self._build()
        augmented = []
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            for image, (seed,) in zip(images, parameters.tolist(), strict=True):
                torch.manual_seed(seed)
                try:
                    varied = transform(image)
                except (TypeError, ValueError) as error:
                    raise UserError(f"augmentation.transforms: don't suit images of uint8 pixels: {error}") from error
                if not isinstance(varied, Tensor):
                    kind = type(varied).__name__
                    raise UserError(f"augmentation.transforms: must give one image's pixels, a tensor, not {kind}")
                augmented.append(v2.functional.to_dtype(varied, torch.float32, scale=True).clamp(0, 1))
        if any(image.shape != images.shape[1:] for image in augmented):
            raise UserError(f"augmentation.transforms: must leave images their size, {tuple(images.shape[1:])}")
        return torch.stack(augmented)
