"""What an encoder is: images -> feature vectors."""

import hashlib
import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from datamodules.errors import UserError
from datamodules.images import to_pixels
from lightning_modules.hardware import keep_freed_memory
from retrieval.search import Vectors

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]

CROPS = 5  # vectors of an image where its crops have some, too


class Encoder(ABC):
    """What turns images into vectors that lie close together where the images are alike.

    Attributes:
        identity: What decides the vectors, as text: vectors of two encoders can be compared only if these are equal.
        arguments: What the constructor takes to build the same encoder again: plain values, kept in the index as JSON.
        channels: 1 if it takes grey images, 3 for colour.
        max_side: Longer side of an image, in pixels, beyond which it sees nothing more; None has no such side.
        device: Where it computes.
        batch_size: Images at once that the device is fast with.
    """

    identity: dict[str, str]
    arguments: dict[str, Any]
    channels: Literal[1, 3]
    max_side: int | None = None

    def __init__(self, device: torch.device | str | None) -> None:
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch raises either for a device that isn't there
            raise UserError(f"device {device}: not available here; leave it out, or name cpu") from error
        self.batch_size = 128 if self.device.type == "cuda" else 32
        if self.device.type == "cpu":
            keep_freed_memory()

    @property
    def origin(self) -> "Encoder":
        """What an index remembers as its encoder: this one, unless it stands for another one."""
        return self

    @abstractmethod
    def box(self, width: int, height: int) -> Box:
        """Which part of an image it sees: left, top, right, bottom, in pixels of the image."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> Pixels:
        """Cut and resize an image; (C, H, W), uint8. Runs in many threads at once."""

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W), uint8 -> (B, D), float32."""

    def seen(self, image: Image.Image) -> Image.Image:
        """The picture that ``box`` and the maps are of: the image itself, unless it is brought into another form."""
        return image

    def maps(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W), uint8 -> (B, D, h, w), float32: what the features are the average of, over positions.

        Raises:
            UserError: They are not such an average, so regions can't be explained.
        """
        raise UserError(
            f"the features of {self.identity['encoder']} are not an average over positions: they can't be explained"
        )

    @cached_property
    def dimension(self) -> int:
        """D, the length of the vectors."""
        blank = Image.new("L" if self.channels == 1 else "RGB", (32, 32))
        return len(self.encode([self.prepare(blank)])[0])

    @torch.inference_mode()
    def encode(self, images: list[Pixels]) -> Vectors:
        """Features of a batch of prepared images.

        Args:
            images: B arrays (C, H, W), uint8, as ``prepare`` gives them.

        Returns:
            (B, D), float32, of length 1; of features that are all 0, as a ReLU network may have for black, one that
            points away from all others'.

        Raises:
            UserError: The network gives something else than finite numbers.
        """
        return self._normalised(self.features(self._batch(images)))

    @torch.inference_mode()
    def encode_crops(self, images: list[Pixels]) -> Vectors:
        """The same of each image as a whole and of four overlapping crops, from the maps of one pass.

        Averages over regions of the maps find parts of an image (Tolias et al. 2016,
        https://arxiv.org/abs/1511.05879, add them up; here each keeps its vector).

        Returns:
            (B, 5, D), float32, of length 1: the whole image first, then each quarter with a third more of each side.

        Raises:
            UserError: As ``maps`` and ``encode``.
        """
        maps = self.maps(self._batch(images))
        h, w = (math.ceil(2 * side / 3) for side in maps.shape[2:])
        crops = [maps, maps[..., :h, :w], maps[..., :h, -w:], maps[..., -h:, :w], maps[..., -h:, -w:]]
        return self._normalised(torch.stack([crop.mean(dim=(2, 3)) for crop in crops], dim=1))

    def _batch(self, images: list[Pixels]) -> Tensor:
        return torch.from_numpy(np.stack(images)).to(self.device)

    def _normalised(self, features: Tensor) -> Vectors:
        vectors: Vectors = F.normalize(features.float(), dim=-1).cpu().numpy()
        if not np.isfinite(vectors).all():
            name = self.arguments.get("weights") or self.arguments.get("path") or self.identity["encoder"]
            raise UserError(f"{name}: the network gives features that are not finite; its weights are unusable")
        # Features of ReLUs are never negative. The origin would be closer to a query than most images are.
        vectors[np.linalg.norm(vectors, axis=-1) < 0.5] = -(vectors.shape[-1] ** -0.5)
        return vectors

    @torch.inference_mode()
    def similarity_map(self, image: Pixels, vector: Vectors) -> npt.NDArray[np.float32]:
        """Which regions of an image make it similar to a vector.

        The features are an average over positions, so their dot product with a vector is exactly a sum over
        positions (Zhou et al. 2016, https://arxiv.org/abs/1512.04150, use the same for class scores).

        Args:
            image: (C, H, W), uint8, as ``prepare`` gives it.
            vector: (D,), float32, of length 1.

        Returns:
            (h, w), float32, over the part that ``box`` names; the sum is the cosine similarity.
        """
        maps = self.maps(self._batch([image])).float()[0]
        parts = torch.einsum("dhw,d->hw", maps, torch.from_numpy(vector).to(self.device))
        parts /= maps.mean(dim=(1, 2)).norm().clamp_min(1e-12) * parts.numel()
        result: npt.NDArray[np.float32] = parts.cpu().numpy()
        return result


class CroppingEncoder(Encoder):
    """An encoder that sees a square of an image.

    Args:
        preprocessing: ``weights`` resizes and crops the centre as the weights were trained; ``plain`` resizes the whole
            image to the square.
        resize: What the smaller side is resized to, in pixels, before the centre is cut out.
        side: Of the square, in pixels.
        device: Where to compute; None takes the GPU if there is one.

    Attributes:
        preprocessing: The same with the sizes, as the identity has it.

    Raises:
        UserError: The preprocessing is neither.
    """

    def __init__(self, preprocessing: str, resize: int, side: int, device: torch.device | str | None) -> None:
        if preprocessing not in ("weights", "plain"):
            raise UserError(f"preprocessing must be weights or plain, got {preprocessing}")
        super().__init__(device)
        self.resize = resize if preprocessing == "weights" else None
        self.side = side
        self.preprocessing = f"plain {side}" if preprocessing == "plain" else f"weights {resize} {side}"

    def box(self, width: int, height: int) -> Box:
        if self.resize is None:
            return 0, 0, width, height
        # The square that torchvision's Resize(smaller side) and CenterCrop leave, in the image's own pixels.
        small = min(width, height)
        resized = [int(self.resize * side / small) for side in (width, height)]
        corner = [round((side - self.side) / 2.0) for side in resized]
        scale = (width / resized[0], height / resized[1])
        return (
            corner[0] * scale[0],
            corner[1] * scale[1],
            (corner[0] + self.side) * scale[0],
            (corner[1] + self.side) * scale[1],
        )

    def prepare(self, image: Image.Image) -> Pixels:
        # One resampling for both.
        square = image.resize((self.side, self.side), Image.Resampling.BILINEAR, self.box(*image.size))
        return to_pixels(square, self.side)


def hash_weights(state: dict[str, Tensor]) -> str:
    """Text that identifies weights, whatever file they came in."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
