"""Networks of timm without their classifier (https://huggingface.co/docs/timm)."""

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor

from datamodules.errors import UserError
from lightning_modules.weights import first_mismatch


def create_backbone(name: str, pretrained: bool, advice: str, **options: Any) -> Any:
    """A network of timm, whose output are its pooled features, (B, D).

    Args:
        name: Its name in timm, with or without the tag of its weights.
        pretrained: With timm's weights, downloaded once into its cache; else with random ones.
        advice: What to do where those aren't available, for the message.
        options: Others of ``timm.create_model``.

    Raises:
        UserError: The weights aren't available.
    """
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    # timm, the hub's client and its transport raise all kinds of errors where there is no network.
    except Exception as error:
        if not pretrained:
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the pretrained weights of {name} aren't available ({reason}); {advice}") from error


def load_backbone(backbone: Any, state: Mapping[str, Tensor], name: str, path: str) -> None:
    """Load weights strictly, but for the classifier, which is not part of the backbone.

    Raises:
        UserError: They are those of another network.
    """
    head = f"{backbone.pretrained_cfg['classifier']}."
    try:
        backbone.load_state_dict({key: value for key, value in state.items() if not key.startswith(head)})
    except RuntimeError as error:
        raise UserError(f"{path}: not the weights of {name}: {first_mismatch(error)}") from error


def averaged_maps(backbone: Any, images: Tensor) -> Tensor | None:
    """(B, 3, H, W), float, normalised -> (B, D, h, w): maps that the pooled features average; None if they don't."""
    maps: Tensor = backbone.forward_features(images)
    if maps.ndim != 4:
        return None
    pooled: Tensor = backbone.forward_head(maps, pre_logits=True)
    average = maps.mean(dim=(2, 3))
    return maps if average.shape == pooled.shape and torch.allclose(average, pooled, rtol=1e-3, atol=1e-4) else None
