"""Build an encoder by its name, or the one that made an index."""

import inspect
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from datamodules.errors import UserError
from datamodules.imports import OPTION, class_path, find_subclass
from retrieval.encoders.base import Encoder
from retrieval.encoders.resnet import RESNETS, ResNetEncoder

MODULES = {"ResNetEncoder": "resnet", "ClassifierEncoder": "classifier", "TimmEncoder": "timm"}  # timm takes a second
TIMM = "timm:"
DIGITS = "digits"  # the network that comes with the package
ENCODER: Any = Encoder  # an abstract class has no type to mypy


def describe_encoder(encoder: Encoder) -> dict[str, str]:
    """What an index keeps of its encoder: the identity, and as ``built`` the class and its arguments as JSON."""
    encoder = encoder.origin
    cls = type(encoder)
    name = class_path(cls).removeprefix(f"{__package__}.{MODULES.get(cls.__name__)}.")
    return {**encoder.identity, "built": json.dumps({"class": name, "arguments": encoder.arguments})}


def build_encoder(encoder: str = "resnet50", device: str | None = None, **options: str) -> Encoder:
    """An encoder by its name.

    Args:
        encoder: ``resnet18`` to ``resnet152`` of torchvision, ``timm:NAME``, a checkpoint or exported folder of ours,
            ``digits`` for the network that comes with the package, or the class of an encoder that is imported,
            such as ``mynet.MyEncoder``.
        device: Where to compute; None takes the GPU if there is one.
        options: Others of its constructor's arguments: weights, layer, preprocessing, precision.

    Raises:
        UserError: There is no such encoder, it doesn't have such an option, or as its class documents.
    """
    if encoder in RESNETS:
        return _construct(ResNetEncoder, {"name": encoder, **options}, device)
    if encoder.startswith(TIMM):
        return _construct(_ours("TimmEncoder"), {"name": encoder.removeprefix(TIMM), **options}, device)
    if encoder == DIGITS or Path(encoder).exists():
        return _construct(_ours("ClassifierEncoder"), {"path": encoder, **options}, device)
    own = find_subclass(ENCODER, encoder)
    if own is not None:
        return _construct(own, options, device)
    return ResNetEncoder(encoder)  # which says what there is


def rebuild_encoder(header: Mapping[str, str], device: str | None = None, **options: str) -> Encoder:
    """The encoder that made an index, from what its header says of it, with some options changed.

    Raises:
        UserError: Its weights aren't where they were, its class isn't imported, or it doesn't have such an option.
    """
    built = json.loads(header["built"])
    cls = _ours(built["class"]) if built["class"] in MODULES else find_subclass(ENCODER, built["class"])
    if cls is None:
        module = built["class"].rpartition(".")[0]
        raise UserError(f"the index was made with {built['class']}, which is not imported; add {OPTION} {module}")
    try:
        return _construct(cls, {**built["arguments"], **options}, device)
    except UserError as error:
        if options:
            raise
        raise UserError(f"the encoder that made the index isn't available: {error}") from error


def _ours(name: str) -> type[Encoder]:
    cls: type[Encoder] = getattr(import_module(f"{__package__}.{MODULES[name]}"), name)
    return cls


def _construct(cls: type[Encoder], arguments: dict[str, Any], device: str | None) -> Encoder:
    taken = inspect.signature(cls).parameters
    asked = arguments if device is None else {**arguments, "device": device}
    if unknown := ", ".join(f"--{name}" for name in asked if name not in taken):
        raise UserError(f"{cls.__name__} has no option {unknown}: leave it out")
    return cls(**arguments, **({"device": device} if "device" in taken else {}))
