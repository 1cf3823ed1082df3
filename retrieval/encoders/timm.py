"""The features of any network of timm."""

import math
import os
from pathlib import Path
from typing import Literal

import timm
import torch
from timm.data.config import resolve_model_data_config
from torch import Tensor

from datamodules.errors import UserError
from lightning_modules.backbone import averaged_maps, create_backbone, load_backbone
from lightning_modules.hardware import fastest_memory_format, full_precision
from lightning_modules.preprocessing import Preprocessing
from lightning_modules.weights import read_weights
from retrieval.encoders.base import CroppingEncoder, hash_weights


class TimmEncoder(CroppingEncoder):
    """A network of timm (https://huggingface.co/docs/timm) without its classifier: its pooled features.

    Size, crop, mean and standard deviation of its input are those that its weights were trained with.

    Args:
        name: The network's name in timm, with or without the tag of its weights.
        weights: File with a state dict; None takes timm's, downloaded once into its cache.
        preprocessing: ``weights`` resizes and crops the centre as the weights were trained; ``plain`` resizes the whole
            image to the same square.
        device: Where to compute; None takes the GPU if there is one.

    Raises:
        UserError: timm has no such network, or the weights aren't available or don't fit.
    """

    channels: Literal[1, 3] = 3

    def __init__(
        self,
        name: str,
        weights: str | Path | None = None,
        preprocessing: Literal["weights", "plain"] = "weights",
        device: torch.device | str | None = None,
    ) -> None:
        if not timm.is_model(name):
            raise UserError(f"timm has no network {name}; timm.list_models() lists them")
        network = create_backbone(
            name,
            weights is None,
            "name a file with --weights, or a mirror or a cache with the variables HF_ENDPOINT or HF_HOME",
        )
        trained_with = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
        side = trained_with["input_size"][-1]
        super().__init__(preprocessing, math.floor(side / trained_with["crop_pct"]), side, device)
        weights = None if weights is None else os.path.abspath(weights)  # noqa: PTH100 - keep symlinks
        self.arguments = {"name": name, "weights": weights, "preprocessing": preprocessing}
        if weights is not None:
            load_backbone(network, read_weights(Path(weights)), name, weights)
        self.identity = {
            "encoder": f"timm:{name}",
            "weights": hash_weights(network.state_dict()),
            "layer": "pooled",
            "preprocessing": self.preprocessing,
        }
        self._network = network.eval().requires_grad_(False)
        self._network.to(self.device, memory_format=fastest_memory_format(self.device))
        self._normalise = Preprocessing(3, side, trained_with["mean"], trained_with["std"]).to(self.device)

    def features(self, pixels: Tensor) -> Tensor:
        with full_precision(self.device):
            features: Tensor = self._network(self._normalise(pixels))
        return features

    def maps(self, pixels: Tensor) -> Tensor:
        with full_precision(self.device):
            maps = averaged_maps(self._network, self._normalise(pixels))
        return super().maps(pixels) if maps is None else maps
