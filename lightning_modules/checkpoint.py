"""Read checkpoints: safely, and with everything that is needed to feed the network."""

import pickle
import zipfile
from pathlib import Path
from typing import Any, TypeVar

import torch

from datamodules.errors import UserError, reason
from lightning_modules import custom_cnn, reference_cnn  # noqa: F401 - so that these classes are known
from lightning_modules.classifier import Classifier

T = TypeVar("T")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of one of our classifiers onto the CPU; nothing in it is run.

    Raises:
        UserError: There is no such file, it is no whole checkpoint, it holds pickled objects that could run code,
            or something else than a classifier made it.
    """
    try:
        with path.open("rb"):
            if not zipfile.is_zipfile(path):
                raise UserError(f"{path}: no checkpoint, or one that is cut off")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {reason(error)}; give a checkpoint file") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: refused, since it holds objects that could run code; a checkpoint holds tensors and plain values"
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no checkpoint, or one that is cut off") from error
    needed = {"state_dict", "hyper_parameters", "model_class"}
    if not isinstance(checkpoint, dict) or not needed <= checkpoint.keys():
        raise UserError(f"{path}: no checkpoint of a DigitDoodle classifier; `fit` writes those")
    return checkpoint


def load_classifier(path: Path, device: torch.device | str = "cpu") -> Classifier:
    """Build the classifier that a checkpoint holds, ready to predict.

    Its ``class_names``, ``in_channels`` and ``image_size`` say what it takes and gives.

    Raises:
        UserError: As ``read_checkpoint``; or the class that made it isn't imported; or the weights don't fit it.
    """
    checkpoint = read_checkpoint(path)
    model = known_class(Classifier, checkpoint["model_class"], path)(**checkpoint["hyper_parameters"])
    model.load_state_dict(checkpoint["state_dict"])
    device = torch.device(device)
    model.use_memory_format(device)
    return model.to(device).eval()


def known_class(base: type[T], class_path: str, path: Path) -> type[T]:
    """Find a subclass by its name among those that are imported: a checkpoint must not choose what is imported.

    Raises:
        UserError: There is none of that name.
    """
    known = [base]
    for cls in known:
        known += cls.__subclasses__()
        if f"{cls.__module__}.{cls.__qualname__}" == class_path:
            return cls
    raise UserError(f"{path}: made with {class_path}, which DigitDoodle doesn't have; import its module first")
