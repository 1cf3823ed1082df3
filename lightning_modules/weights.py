"""Read files of tensors, safely: nothing in them is run."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from datamodules.errors import UserError, reason


def read_torch_file(path: Path) -> Any:
    """Read what ``torch.save`` wrote, onto the CPU: tensors and plain values only.

    Raises:
        UserError: There is no such file, it is damaged or something else, or it holds objects that could run code.
    """
    try:
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # Torch raises nearly anything on a damaged file, from IndexError to OSError.
    except Exception as error:
        if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
            raise UserError(f"{path}: refused, since it holds objects that could run code") from error
        raise UserError(f"{path}: not written by torch.save, or cut off") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or from what ``torch.save`` wrote.

    Raises:
        UserError: As ``read_torch_file``; or the file holds something else than tensors by name.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            what = reason(error) if isinstance(error, OSError) else "no safetensors file, or one that is cut off"
            raise UserError(f"{path}: {what}") from error
    state = read_torch_file(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: no weights; expected a state dict, tensors by name")
    return state
