"""Exported networks, run by onnxruntime: they answer without PyTorch, whose import takes seconds."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.errors import UserError, reason
from datamodules.normalizer import DigitNormalizer

CONFIG, WEIGHTS, ONNX, PROGRAM = "config.json", "model.safetensors", "model.onnx", "model.pt2"  # in a folder
IMAGES, PROBABILITIES, SCORE = "images", "probabilities", "score"  # what a program takes and gives

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def read_config(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of an exported folder.

    Raises:
        UserError: It is not an exported folder, or a damaged one.
    """
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config["model_class"], config["hyper_parameters"]["class_names"]  # which all have
    except OSError as error:
        raise UserError(f"{folder}: not an exported network ({CONFIG}: {reason(error)})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG}: damaged ({error})") from error
    return config


class ExportedNetwork:
    """The ONNX program of an exported folder, on the CPU; a class of the user's own need not be imported.

    Args:
        folder: The folder.

    Attributes:
        class_names: Names of the classes, in the order of the outputs.
        in_channels: Channels of the images: 1 for grey, 3 for colour.
        image_size: Height of the images, in pixels.
        normalizer: How the digits of the training images lie; None where they are of something else.

    Raises:
        UserError: The folder is damaged.
    """

    def __init__(self, folder: Path) -> None:
        import onnxruntime  # which the `export` extra has

        config = read_config(folder)
        hparams, normalizer = config["hyper_parameters"], config.get("normalizer")
        self.class_names: list[str] = hparams["class_names"]
        self.in_channels: int = hparams["in_channels"]
        self.image_size: int = hparams["image_size"]
        self.normalizer = None if normalizer is None else DigitNormalizer.from_dict(normalizer)
        try:
            self._session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has one of its own for each thing that may be wrong
            raise UserError(f"{folder / ONNX}: not an ONNX program, or cut off") from error

    def __call__(self, pixels: Pixels) -> dict[str, Floats]:
        """(B, C, H, W), uint8 -> what ``Network.answers`` of the same network gives, by name."""
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, {IMAGES: pixels}), strict=True))

    def read_columns(self, line: Pixels) -> Floats:
        """What ``LineReader.read_columns`` of the same network gives."""
        columns: Floats = self(line[None, None])[PROBABILITIES][0]
        return columns


def program_outputs(path: Path) -> dict[str, list[int | str]]:
    """What the program of an exported folder gives: shapes by name, with names for free axes.

    Nothing where there is no program that could be run: the path is a checkpoint, the folder has weights alone or is of
    an earlier version, or onnxruntime is not installed.
    """
    if not (path / ONNX).is_file() or find_spec("onnxruntime") is None:
        return {}
    try:
        outputs: dict[str, list[int | str]] = read_config(path).get("outputs", {})
    except UserError:
        return {}
    return outputs
