"""The features of one of our own classifiers."""

import json
import os
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.normalizer import max_side, normalize
from lightning_modules.embedded import EMBEDDED
from lightning_modules.hardware import full_precision
from retrieval.encoders.base import Box, Encoder, Pixels, hash_weights


class ClassifierEncoder(Encoder):
    """The features of a classifier that ``python -m lightning_modules fit`` has trained.

    Args:
        path: Its checkpoint, or the folder that it was exported to; ``digits`` is the one that comes with the package.
        device: Where to compute; None takes the GPU if there is one.

    Raises:
        UserError: It can't be read, or is not a classifier.
    """

    def __init__(self, path: str | Path, device: torch.device | str | None = None) -> None:
        super().__init__(device)
        # Lightning takes seconds to import; only this encoder needs it.
        from lightning_modules.checkpoint import load_classifier

        place = EMBEDDED if path == "digits" else Path(path)
        self._model = load_classifier(place)
        self._model.use_memory_format(self.device)
        self._model.to(self.device).requires_grad_(False)
        normalizer = self._model.normalizer
        self.channels = 1 if self._model.in_channels == 1 and normalizer is None else 3  # faint ink has a colour
        self.arguments = {"path": "digits" if place == EMBEDDED else os.path.abspath(place)}  # noqa: PTH100 - symlinks stay
        self.identity = {
            "encoder": type(self._model).__name__,
            "weights": hash_weights(self._model.state_dict()),
            "layer": "features",
            "preprocessing": f"plain {self._model.image_size}",
        }
        self.max_side = max_side(normalizer)
        if normalizer is not None:
            state = blake2b(json.dumps(normalizer.to_dict(), sort_keys=True).encode(), digest_size=8)
            self.identity["preprocessing"] = f"normalized {self._model.image_size} {state.hexdigest()}"

    def box(self, width: int, height: int) -> Box:
        return 0, 0, width, height

    def prepare(self, image: Image.Image) -> Pixels:
        return normalize(image, self._model.image_size, self._model.in_channels, self._model.normalizer).pixels

    def seen(self, image: Image.Image) -> Image.Image:
        prepared = self.prepare(image)
        plain = normalize(image, self._model.image_size, self._model.in_channels, None)
        if np.array_equal(prepared, plain.pixels):
            return image
        return Image.fromarray(prepared.transpose(1, 2, 0).squeeze()).convert("RGB")

    def features(self, pixels: Tensor) -> Tensor:
        with full_precision(self.device):
            features: Tensor = self._model.forward_pooled(pixels)
        return features

    def maps(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self._model.forward_features(pixels)
        return maps
