"""What a command line starts from: the default classes, and what a checkpoint says of its network and data."""

import json
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

from datamodules.base import ImageDataModule
from datamodules.corrections import CorrectionsDataModule
from datamodules.errors import UserError
from datamodules.image_files import ImageFilesDataModule
from datamodules.imports import class_path
from datamodules.optdigits import OptDigitsDataModule
from lightning_modules.arguments import as_yaml, named_class
from lightning_modules.checkpoint import known_class, read_checkpoint, read_export
from lightning_modules.classifier import Classifier
from lightning_modules.embedded import EMBEDDED
from lightning_modules.network import Network
from lightning_modules.networks import CustomCNN
from lightning_modules.run import Run

CONTRACT = ("class_names", "in_channels", "image_size")  # what a network takes from its data


def with_first_configs(args: list[str]) -> list[str]:
    """Put the default classes, and the config that belongs to ``--ckpt_path``, before what the user gives.

    ``predict`` takes the network that comes with the package where neither a checkpoint nor a network is named. ``fit``
    resumes the run of a checkpoint, or, on a ``CorrectionsDataModule``, starts one from its weights.

    Args:
        args: A command, such as ``fit``, and its options.

    Raises:
        UserError: The checkpoint can't be read, its classes aren't imported, or it doesn't name its data.
    """
    # As defaults of the parser they would leave their settings behind when the user chooses another class.
    defaults = ["--config", json.dumps({"model": class_path(CustomCNN), "data": class_path(OptDigitsDataModule)})]
    path = _value_of("--ckpt_path", args)
    path = None if path == "null" else path  # as YAML has it, against one in a config
    own = any(_value_of(option, args) is not None for option in ("--model", "--config", "-c"))
    if args[0] == "predict" and path is None and not own:
        path = str(EMBEDDED)
        args = [*args, "--ckpt_path", path]
    if args[0] == "fit" and named_class("data", args).rpartition(".")[2] == CorrectionsDataModule.__name__:
        base = as_yaml(_adapted(Path(path or EMBEDDED)))
        return [args[0], *defaults, "--config", base, *args[1:], "--ckpt_path", "null"]
    if path is None:
        return [args[0], *defaults, *args[1:]]
    if args[0] == "fit" and Path(path).is_dir():  # of a series
        config_file = Run(Path(path)).config
        if not config_file.is_file():
            raise UserError(
                f"{path}: not a run of folds or teachers ({config_file.name} is missing); name a checkpoint"
            )
        return [args[0], *defaults, "--config", str(config_file), *args[1:]]
    if args[0] == "predict" and Path(path).is_dir():
        checkpoint = read_export(Path(path))
    else:
        checkpoint = read_checkpoint(Path(path))
    named = args[0] == "fit" or any(_value_of(option, args) is not None for option in ("--data", "--config", "-c"))
    run = Run.of_checkpoint(Path(path))
    if args[0] == "fit" and Path(path).absolute().parent == run.checkpoints and run.config.is_file():
        first = [str(run.config)]
        if "weights" in checkpoint["hyper_parameters"]:  # those to start from are no longer needed
            first.append(json.dumps({"model": {"init_args": {"weights": None}}}))
    else:
        config = _checkpoint_config(checkpoint, Path(path), args[0], named)
        first = [as_yaml(config)]
    given = [*defaults, *(part for config in first for part in ("--config", config)), *args[1:]]
    if args[0] == "predict" and named:  # a config of a run names its data, too; here they are image files
        given += ["--config", as_yaml({"data": config["data"]})]
    return [args[0], *given]


def _checkpoint_config(checkpoint: dict[str, Any], path: Path, subcommand: str, data_named: bool) -> dict[str, Any]:
    hparams = checkpoint["hyper_parameters"]
    network = known_class(Network, checkpoint["model_class"], path)
    if subcommand == "predict" and not issubclass(network, Classifier):
        raise UserError(f"{path}: a {network.__name__}, for the command `read`, which has the same --ckpt_path")
    contract = {name: hparams[name] for name in CONTRACT}
    own = {name: value for name, value in hparams.items() if name not in CONTRACT}
    config = {"model": {"class_path": checkpoint["model_class"], "init_args": own}}
    if subcommand == "predict":
        files = {"images": [], **contract, "normalizer": checkpoint.get("normalizer")}
        config["data"] = {"class_path": class_path(ImageFilesDataModule), "init_args": files}
    elif "data_hparams" in checkpoint:
        known_class(LightningDataModule, checkpoint["data_class"], path)
        config["data"] = {"class_path": checkpoint["data_class"], "init_args": checkpoint["data_hparams"]}
    elif not data_named:
        raise UserError(f"{path}: doesn't say what it was trained on: name it with --data")
    return config


def _adapted(path: Path) -> dict[str, Any]:
    """The network of a checkpoint or an export, to start from its weights, and the data that go with it."""
    described = read_export(path) if path.is_dir() else read_checkpoint(path)
    hparams, data = described["hyper_parameters"], described.get("data_hparams", {})
    network = known_class(Network, described["model_class"], path)
    if not issubclass(network, Classifier) or "weights" not in hparams:
        raise UserError(f"{path}: a {network.__name__}, which can't be adapted: it can't start from weights")
    own = {name: value for name, value in hparams.items() if name not in CONTRACT}
    seen = {name: hparams[name] for name in CONTRACT} | {"normalizer": described.get("normalizer")}
    if "augmentation" in data:
        seen["augmentation"] = data["augmentation"]
    if "replay" in data:  # it was adapted before
        seen["replay"] = data["replay"]
    elif data:
        known_class(ImageDataModule, described["data_class"], path)
        seen["replay"] = {"class_path": described["data_class"], "init_args": data}
    return {
        "model": {"class_path": described["model_class"], "init_args": {**own, "weights": str(path)}},
        "data": {"class_path": class_path(CorrectionsDataModule), "init_args": seen},
    }


def _value_of(option: str, args: list[str]) -> str | None:
    """What follows an option, as ``--option VALUE`` or ``--option=VALUE``; the last one counts."""
    value = None
    for place, arg in enumerate(args):
        if arg == option and place + 1 < len(args):
            value = args[place + 1]
        elif arg.startswith(f"{option}="):
            value = arg.partition("=")[2]
    return value
