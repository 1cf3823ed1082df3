"""Images -> feature vectors: a torchvision ResNet, or one of our own classifiers."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import get_model, get_model_weights
from torchvision.models.feature_extraction import create_feature_extractor

from datamodules.errors import UserError, reason
from datamodules.images import to_pixels
from lightning_modules.hardware import fastest_memory_format, keep_freed_memory
from lightning_modules.preprocessing import Preprocessing
from lightning_modules.weights import read_weights
from retrieval.search import Vectors

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
DOWNLOADED = "torchvision"  # the source of weights that come with no file of the user's


class Encoder(ABC):
    """What turns images into vectors that lie close together where the images are alike.

    Attributes:
        identity: What decides the vectors, as text: vectors of two encoders can be compared only if these are equal.
        source: Where the weights come from: what builds the same encoder again.
        channels: 1 if it takes grey images, 3 for colour.
        device: Where it computes.
        batch_size: Images at once that the device is fast with.
    """

    identity: dict[str, str]
    source: str
    channels: Literal[1, 3]

    def __init__(self, device: torch.device | str | None) -> None:
        try:
            self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.empty(1, device=self.device)
        except (RuntimeError, AssertionError) as error:  # torch raises either for a device that isn't there
            raise UserError(f"device {device}: not to be had here; leave it open, or name cpu") from error
        self.batch_size = 128 if self.device.type == "cuda" else 32
        if self.device.type == "cpu":
            keep_freed_memory()

    @abstractmethod
    def box(self, width: int, height: int) -> Box:
        """Which part of an image it sees: left, top, right, bottom, in pixels of the image."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> Pixels:
        """Cut and resize an image; (C, H, W), uint8. Runs in many threads at once."""

    @abstractmethod
    def maps(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W), uint8 -> (B, D, h, w), float32: what the features are the average of, over positions."""

    def features(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W), uint8 -> (B, D), float32."""
        return self.maps(pixels).mean(dim=(2, 3))

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
            (B, D), float32, of length 1.

        Raises:
            UserError: The network gives something else than finite numbers.
        """
        pixels = torch.from_numpy(np.stack(images)).to(self.device)
        vectors: Vectors = F.normalize(self.features(pixels).float(), dim=1).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise UserError(f"{self.source}: the network gives features that are not finite; its weights are no good")
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
        maps = self.maps(torch.from_numpy(np.stack([image])).to(self.device)).float()[0]
        parts = torch.einsum("dhw,d->hw", maps, torch.from_numpy(vector).to(self.device))
        parts /= maps.mean(dim=(1, 2)).norm() * parts.numel()
        result: npt.NDArray[np.float32] = parts.cpu().numpy()
        return result


class ResNetEncoder(Encoder):
    """A ResNet of torchvision (He et al. 2015, https://arxiv.org/abs/1512.03385), cut off at a layer.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` or ``resnet152``.
        weights: File with a state dict; None takes torchvision's ImageNet weights, downloaded once into its cache.
        layer: ``avgpool``, or a layer that gives maps, such as ``layer3``, which are then averaged over positions.
        preprocessing: ``weights`` resizes and crops the centre as the weights were trained; ``plain`` resizes the whole
            image to the same square, as the reference does.
        device: Where to compute; None takes the GPU if there is one.

    Raises:
        UserError: There is no such network or layer, or the weights can't be had or don't fit.
    """

    channels: Literal[1, 3] = 3

    def __init__(
        self,
        name: str = "resnet50",
        weights: str | Path | None = None,
        layer: str = "avgpool",
        preprocessing: Literal["weights", "plain"] = "weights",
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(device)
        if name not in RESNETS:
            raise UserError(f"unknown encoder {name}: expected {', '.join(RESNETS)}, or a checkpoint of `fit`")
        if preprocessing not in ("weights", "plain"):
            raise UserError(f"preprocessing must be weights or plain, got {preprocessing}")
        trained = get_model_weights(name).DEFAULT
        transforms = trained.transforms()
        self.source = DOWNLOADED if weights is None else os.path.abspath(weights)  # noqa: PTH100 - keep symlinks
        state = _download(trained) if weights is None else read_weights(Path(weights))
        with torch.device("meta"):  # nothing is drawn for weights that are replaced at once
            network = get_model(name, weights=None).eval()
        state = {key: part.float() if part.is_floating_point() else part for key, part in state.items()}
        try:
            network.load_state_dict(state, assign=True)
        except RuntimeError as error:
            what = str(error).strip().splitlines()[1].strip()
            raise UserError(f"{self.source}: not the weights of a {name}: {what}") from error

        node = "layer4" if layer == "avgpool" else layer  # whose average avgpool is
        known = [part for part, _ in network.named_modules() if part.startswith(("relu", "maxpool", "layer"))]
        if node not in known:
            names = ", ".join(part for part in known if "." not in part)
            raise UserError(f"{name} has no maps at {layer}: the layer must be avgpool, {names}, or a part of those")
        self._resize = transforms.resize_size[0]
        self._side = transforms.crop_size[0]
        self._plain = preprocessing == "plain"
        self.identity = {
            "encoder": name,
            "weights": _hash(state),
            "layer": layer,
            "preprocessing": f"plain {self._side}" if self._plain else f"weights {self._resize} {self._side}",
        }
        _fold_batch_norm(network)
        # Full precision on CPUs: bf16 in channels-last order falls back to slow code there, and full precision in
        # channels-last order is as fast as bf16 without it. On a GPU half precision leaves the neighbours as they are.
        self._network = create_feature_extractor(network, {node: "maps"}).eval()
        self._network.requires_grad_(False).to(self.device, memory_format=fastest_memory_format(self.device))
        self._normalise = Preprocessing(3, self._side, tuple(transforms.mean), tuple(transforms.std)).to(self.device)

    def box(self, width: int, height: int) -> Box:
        """Which part of an image it sees: left, top, right, bottom, in pixels of the image."""
        if self._plain:
            return 0, 0, width, height
        # The square that torchvision's Resize(smaller side) and CenterCrop leave, in the image's own pixels.
        small = min(width, height)
        resized = [int(self._resize * side / small) for side in (width, height)]
        corner = [round((side - self._side) / 2.0) for side in resized]
        scale = (width / resized[0], height / resized[1])
        return (
            corner[0] * scale[0],
            corner[1] * scale[1],
            (corner[0] + self._side) * scale[0],
            (corner[1] + self._side) * scale[1],
        )

    def prepare(self, image: Image.Image) -> Pixels:
        """Cut and resize an image in one resampling; (3, H, W), uint8."""
        square = image.resize((self._side, self._side), Image.Resampling.BILINEAR, self.box(*image.size))
        return to_pixels(square, self._side)

    def maps(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W), uint8 -> (B, D, h, w), float32."""
        images = self._normalise(pixels).contiguous(memory_format=fastest_memory_format(self.device))
        with torch.autocast("cuda", torch.float16, enabled=self.device.type == "cuda"):
            maps: Tensor = self._network(images)["maps"]
        return maps.float()


class ClassifierEncoder(Encoder):
    """The features of a classifier that ``python -m lightning_modules fit`` has trained.

    Args:
        path: Its checkpoint, or the folder that it was exported to.
        device: Where to compute; None takes the GPU if there is one.

    Raises:
        UserError: It can't be read, or is no classifier.
    """

    def __init__(self, path: str | Path, device: torch.device | str | None = None) -> None:
        super().__init__(device)
        # Lightning takes seconds to import; only this encoder needs it.
        from lightning_modules.checkpoint import load_classifier, load_export

        path = Path(path)
        self._model = load_export(path) if path.is_dir() else load_classifier(path)
        self._model.use_memory_format(self.device)
        self._model.to(self.device).requires_grad_(False)
        self.channels = 1 if self._model.in_channels == 1 else 3
        self.source = os.path.abspath(path)  # noqa: PTH100 - keep symlinks
        self.identity = {
            "encoder": type(self._model).__name__,
            "weights": _hash(self._model.state_dict()),
            "layer": "features",
            "preprocessing": f"plain {self._model.image_size}",
        }

    def box(self, width: int, height: int) -> Box:
        """The whole image."""
        return 0, 0, width, height

    def prepare(self, image: Image.Image) -> Pixels:
        """Resize an image; (C, H, W), uint8."""
        return to_pixels(image, self._model.image_size)

    def features(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W), uint8 -> (B, D), float32."""
        features: Tensor = self._model.forward_features(pixels)
        return features

    def maps(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W), uint8 -> (B, D, h, w), float32.

        Raises:
            UserError: The features of this network are no average over positions.
        """
        maps: Tensor = self._model.forward_maps(pixels)
        return maps


def build_encoder(
    encoder: str = "resnet50",
    weights: str | Path | None = None,
    layer: str = "avgpool",
    preprocessing: Literal["weights", "plain"] = "weights",
    device: str | None = None,
) -> Encoder:
    """A ``ResNetEncoder`` by name, or the ``ClassifierEncoder`` of a checkpoint or exported folder.

    Raises:
        UserError: There is neither, or as the two say.
    """
    if encoder in RESNETS or not Path(encoder).exists():
        return ResNetEncoder(encoder, weights, layer, preprocessing, device)
    if weights is not None or layer != "avgpool" or preprocessing != "weights":
        raise UserError(f"{encoder} is a classifier: weights, layer and preprocessing are for a ResNet")
    return ClassifierEncoder(encoder, device)


def rebuild_encoder(
    header: Mapping[str, str],
    weights: str | Path | None = None,
    layer: str | None = None,
    preprocessing: Literal["weights", "plain"] | None = None,
    device: str | None = None,
) -> Encoder:
    """The encoder that made an index, from what its header says of it and, of a ResNet, what shall be otherwise.

    Raises:
        UserError: Its weights aren't where they were, or it is no ResNet.
    """
    source = header["source"]
    given = (weights, layer, preprocessing) != (None, None, None)
    if header["encoder"] not in RESNETS and given:
        raise UserError(f"{source} is a classifier: weights, layer and preprocessing are for a ResNet")
    try:
        if header["encoder"] not in RESNETS:
            return ClassifierEncoder(source, device)
        before: Any = header["preprocessing"].partition(" ")[0]
        weights = weights or (None if source == DOWNLOADED else source)
        return ResNetEncoder(header["encoder"], weights, layer or header["layer"], preprocessing or before, device)
    except UserError as error:
        if given:
            raise
        raise UserError(f"the encoder that made the index can't be had: {error}") from error


def _download(weights: Any) -> dict[str, Tensor]:
    """Torchvision's weights, from its cache or the internet; read without running anything in them."""
    try:
        state: dict[str, Tensor] = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, TimeoutError) as error:
        what = reason(error) if isinstance(error, OSError) and error.errno else getattr(error, "reason", error)
        raise UserError(
            f"can't download {weights.url} ({what}): name a file with --weights, put it into "
            f"{Path(torch.hub.get_dir()) / 'checkpoints'}, or take a checkpoint of ours with --encoder"
        ) from error
    except RuntimeError as error:  # another hash than the name says
        raise UserError(f"torchvision's weights came damaged: {error}") from error
    return state


def _hash(state: dict[str, Tensor]) -> str:
    """Text that stands for weights, whatever file they came in."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _fold_batch_norm(network: nn.Module) -> None:
    """Make each batch normalisation a part of the convolution before it, which saves a fifth of the time."""
    for module in network.modules():
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
