"""Read checkpoints and exports: safely, and with everything that is needed to feed the network."""

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch

import datamodules
from datamodules.errors import UserError
from datamodules.imports import OPTION, find_subclass
from datamodules.normalizer import DigitNormalizer
from datamodules.writing import atomic_write
from lightning_modules import networks
from lightning_modules.calibration import CALIBRATION
from lightning_modules.classifier import Classifier
from lightning_modules.exported import WEIGHTS, read_config
from lightning_modules.network import Network
from lightning_modules.recipe import Recipe
from lightning_modules.weights import read_torch_file, read_weights

T = TypeVar("T")
N = TypeVar("N", bound=Network)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of one of our networks onto the CPU; nothing in it is run.

    Raises:
        UserError: There is no such file, it is no whole checkpoint, it holds pickled objects that could run code,
            or something else than a network of ours made it.
    """
    checkpoint = read_torch_file(path)
    needed = {"state_dict", "hyper_parameters", "model_class"}
    if not isinstance(checkpoint, dict) or not needed <= checkpoint.keys():
        raise UserError(f"{path}: not a checkpoint of a DigitDoodle network; `fit` writes those")
    if is_ours(checkpoint["model_class"]):
        checkpoint["hyper_parameters"] = with_recipe(checkpoint["hyper_parameters"])
    return checkpoint


def load_classifier(path: Path, device: torch.device | str = "cpu") -> Classifier:
    """Build the classifier that a checkpoint, or an exported folder, holds, ready to predict; nothing in it is run.

    Raises:
        UserError: As ``load_network``.
    """
    return load_network(path, Classifier, device)


def load_network(path: Path, kind: type[N], device: torch.device | str = "cpu") -> N:
    """Build the network that a checkpoint, or an exported folder, holds, ready to be used; nothing in it is run.

    Its ``class_names``, ``in_channels`` and ``image_size`` say what it takes and gives.

    Raises:
        UserError: As ``read_checkpoint`` and ``read_config``; or the class that made it isn't imported, or is not of
            that kind; or the weights don't fit it.
    """
    described = read_export(path) if path.is_dir() else read_checkpoint(path)
    model = build(described, path)
    if not isinstance(model, kind):
        raise UserError(f"{path}: a {type(model).__name__}, where a {kind.__name__} is expected")
    model.load_state_dict(read_weights(path / WEIGHTS) if path.is_dir() else described["state_dict"])
    device = torch.device(device)
    model.use_memory_format(device)
    return model.to(device).eval()


def save_calibration(path: Path, model: Network) -> None:
    """Put the calibration of a network into the checkpoint that its weights are from.

    Raises:
        UserError: The checkpoint can't be read.
        OSError: It can't be written; then it is as it was.
    """
    checkpoint = read_torch_file(path)
    state = {f"{CALIBRATION}{name}": value.cpu() for name, value in model.calibration.state_dict().items()}
    checkpoint["state_dict"].update(state)
    with atomic_write(path) as file:
        torch.save(checkpoint, file)


def build(described: dict[str, Any], path: Path) -> Network:
    """Build the network that a checkpoint or an export describes, with weights yet to be loaded.

    Raises:
        UserError: The class that made it isn't imported.
    """
    hparams = described["hyper_parameters"]
    if "recipe" in hparams:
        hparams = {**hparams, "recipe": Recipe(**hparams["recipe"])}
    model = known_class(Network, described["model_class"], path)(**hparams)
    if isinstance(model, Classifier) and described.get("normalizer") is not None:
        model.normalizer = DigitNormalizer.from_dict(described["normalizer"])
    return model


def with_recipe(hparams: dict[str, Any]) -> dict[str, Any]:
    """Hyper-parameters of one of our networks, also as they were before the recipe had a name of its own."""
    flat = {field.name for field in fields(Recipe)} & hparams.keys()
    if not flat:
        return hparams
    others = {name: value for name, value in hparams.items() if name not in flat}
    return {**others, "recipe": {name: hparams[name] for name in flat}}


def is_ours(name: str) -> bool:
    """Whether a class is one of this package's, wherever in it."""
    return name.startswith("lightning_modules.")


def known_class(base: type[T], name: str, path: Path) -> type[T]:
    """Find a subclass by its name, among ours and those imported: a checkpoint must not choose what is imported.

    Args:
        base: What it is a subclass of.
        name: Module and name; one of ours is known by its name, wherever its module was when it was written.
        path: The checkpoint, for the error message.

    Raises:
        UserError: There is none of that name.
    """
    ours = {"datamodules": datamodules, "lightning_modules": networks}.get(name.partition(".")[0])
    cls = getattr(ours, name.rpartition(".")[2], None)
    if isinstance(cls, type) and issubclass(cls, base):
        return cls
    imported = find_subclass(base, name)
    if imported is not None:
        return imported
    module = name.rpartition(".")[0]
    raise UserError(f"{path}: made with {name}, which is not imported; add {OPTION} {module}")


def read_export(folder: Path) -> dict[str, Any]:
    """What an exported folder says of its network, as ``read_checkpoint`` does.

    Raises:
        UserError: As ``read_config``.
    """
    config = read_config(folder)
    if is_ours(config["model_class"]):
        config["hyper_parameters"] = with_recipe(config["hyper_parameters"])
    return config
