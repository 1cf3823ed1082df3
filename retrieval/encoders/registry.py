"""Build an encoder by its name, or the one that made an index."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from datamodules.errors import UserError
from retrieval.encoders.base import Encoder
from retrieval.encoders.classifier import ClassifierEncoder
from retrieval.encoders.resnet import DOWNLOADED, RESNETS, ResNetEncoder


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
