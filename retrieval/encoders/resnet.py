"""The features of a torchvision ResNet."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import get_model, get_model_weights
from torchvision.models.feature_extraction import create_feature_extractor

from datamodules.errors import UserError, reason
from lightning_modules.hardware import fastest_memory_format, fastest_precision, full_precision
from lightning_modules.preprocessing import Preprocessing
from lightning_modules.weights import first_mismatch, read_weights
from retrieval.encoders.base import CroppingEncoder, hash_weights

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


class ResNetEncoder(CroppingEncoder):
    """A ResNet of torchvision (He et al. 2015, https://arxiv.org/abs/1512.03385), cut off at a layer.

    Args:
        name: ``resnet18``, ``resnet34``, ``resnet50``, ``resnet101`` or ``resnet152``.
        weights: File with a state dict; None takes torchvision's ImageNet weights, downloaded once into its cache.
        layer: ``avgpool``, or a layer that gives maps, such as ``layer3``, which are then averaged over positions.
        preprocessing: ``weights`` resizes and crops the centre as the weights were trained; ``plain`` resizes the whole
            image to the same square, as the reference does.
        precision: ``full`` is float32. ``bf16`` has 8 bits instead of 24; its vectors compare with those of full
            precision, but on devices without instructions for it, it is many times slower. ``auto`` takes it where it
            is fast.
        device: Where to compute; None takes the GPU if there is one.

    Raises:
        UserError: There is no such network or layer, or the weights aren't available or don't fit.
    """

    channels: Literal[1, 3] = 3

    def __init__(
        self,
        name: str = "resnet50",
        weights: str | Path | None = None,
        layer: str = "avgpool",
        preprocessing: Literal["weights", "plain"] = "weights",
        precision: Literal["full", "bf16", "auto"] = "full",
        device: torch.device | str | None = None,
    ) -> None:
        if name not in RESNETS:
            raise UserError(
                f"unknown encoder {name}: expected {', '.join(RESNETS)}, timm:NAME, or a checkpoint of `fit`"
            )
        if precision not in ("full", "bf16", "auto"):
            raise UserError(f"precision must be full, bf16 or auto, got {precision}")
        trained = get_model_weights(name).DEFAULT
        transforms = trained.transforms()
        side = transforms.crop_size[0]
        super().__init__(preprocessing, transforms.resize_size[0], side, device)
        weights = None if weights is None else os.path.abspath(weights)  # noqa: PTH100 - keep symlinks
        self.arguments = {
            "name": name,
            "weights": weights,
            "layer": layer,
            "preprocessing": preprocessing,
            "precision": precision,
        }
        state = _download(trained) if weights is None else read_weights(Path(weights))
        with torch.device("meta"):  # nothing is drawn for weights that are replaced at once
            network = get_model(name, weights=None).eval()
        state = {key: part.float() if part.is_floating_point() else part for key, part in state.items()}
        try:
            network.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise UserError(
                f"{weights or trained.url}: not the weights of a {name}: {first_mismatch(error)}"
            ) from error

        node = "layer4" if layer == "avgpool" else layer  # whose average avgpool is
        known = [part for part, _ in network.named_modules() if part.startswith(("relu", "maxpool", "layer"))]
        if node not in known:
            names = ", ".join(part for part in known if "." not in part)
            raise UserError(f"{name} has no maps at {layer}: the layer must be avgpool, {names}, or a part of those")
        self.identity = {
            "encoder": name,
            "weights": hash_weights(state),
            "layer": layer,
            "preprocessing": self.preprocessing,
        }
        _fold_batch_norm(network)
        self._network = create_feature_extractor(network, {node: "maps"}).eval().requires_grad_(False)
        # Full precision by default, so that an index is the same on every machine; autocast to bf16 is not even faster.
        reduced = precision == "bf16" or (
            precision == "auto" and fastest_precision(self.device, self._network) == "bf16-mixed"
        )
        self._dtype = torch.bfloat16 if reduced else torch.float32
        self._network.to(self.device, self._dtype, memory_format=fastest_memory_format(self.device))
        self._normalise = Preprocessing(3, side, tuple(transforms.mean), tuple(transforms.std)).to(self.device)

    def features(self, pixels: Tensor) -> Tensor:
        return self.maps(pixels).mean(dim=(2, 3))

    def maps(self, pixels: Tensor) -> Tensor:
        images = self._normalise(pixels).to(self._dtype, memory_format=fastest_memory_format(self.device))
        with full_precision(self.device):
            maps: Tensor = self._network(images)["maps"]
        return maps.float()


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
        raise UserError(f"torchvision's weights were damaged on the way: {error}") from error
    return state


def _fold_batch_norm(network: nn.Module) -> None:
    """Make each batch normalisation a part of the convolution before it, which saves a fifth of the time."""
    for module in network.modules():
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
