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
from lightning_modules.exported import WEIGHTS


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
            what = reason(error) if isinstance(error, OSError) else "not a safetensors file, or cut off"
            raise UserError(f"{path}: {what}") from error
    return checked(read_torch_file(path), path)


def checked(state: Any, path: Path) -> dict[str, Tensor]:
    """Weights as they are.

    Raises:
        UserError: They are something else than tensors by name.
    """
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: not a weights file; expected a state dict, tensors by name")
    return state


def read_start(path: Path) -> dict[str, Tensor]:
    """Read weights to start from: a state dict, a checkpoint of a run, or an exported folder.

    Raises:
        UserError: As ``read_weights``.
    """
    if path.is_dir():
        return read_weights(path / WEIGHTS)
    if path.suffix == ".safetensors":
        return read_weights(path)
    state = read_torch_file(path)
    return checked(state["state_dict"] if isinstance(state, dict) and "state_dict" in state else state, path)


def first_mismatch(error: RuntimeError) -> str:
    """What ``load_state_dict`` found first."""
    return str(error).strip().splitlines()[1].strip()[:200]
