"""Write down what a classifier says of image files."""

import csv
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist
from lightning import Trainer
from torch import Tensor

from datamodules.errors import UserError, reason
from datamodules.files import written_aside
from datamodules.image_files import ImageFilesDataModule
from lightning_modules.classifier import Classifier

TOP = 3


def predict_files(
    trainer: Trainer, model: Classifier, images: list[str], ckpt_path: str | None
) -> tuple[list[Path], Tensor]:
    """Classify image files, with as many processes as the trainer has.

    Args:
        trainer: Where and how to compute.
        model: The classifier.
        images: Image files, and folders that are searched for them.
        ckpt_path: Checkpoint with the model's weights; None where the model has them already.

    Returns:
        N files, in the order given, and (N, K), float32, the class probabilities of each.

    Raises:
        UserError: A file is missing or can't be read.
    """
    files = ImageFilesDataModule(images, model.class_names, model.image_size, model.in_channels)
    parts = trainer.predict(model, datamodule=files, ckpt_path=ckpt_path, weights_only=True)
    assert parts is not None
    assert files.predict_set is not None
    probabilities = torch.zeros(len(files.predict_set), len(model.class_names))
    for indices, values in parts:
        probabilities[indices] = values
    errors = files.predict_set.errors
    if trainer.world_size > 1:
        dist.all_reduce(probabilities)
        shares: list[dict[int, str]] = [{}] * trainer.world_size
        dist.all_gather_object(shares, errors)
        errors = {index: text for share in shares for index, text in share.items()}
    if errors:
        broken = "\n  ".join(errors[index] for index in sorted(errors))
        raise UserError(
            f"{len(errors)} of {len(probabilities)} images can't be read, so nothing is written; "
            f"mend them or leave them out:\n  {broken}"
        )
    return files.predict_set.paths, probabilities


def write_predictions(output: Path, paths: list[Path], probabilities: Tensor, class_names: list[str]) -> None:
    """Write a CSV: path, label, probability, then label and probability of the next best classes.

    Raises:
        UserError: The file can't be written.
    """
    top = probabilities.topk(min(TOP, len(class_names)), dim=1)
    try:
        with written_aside(output, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            _write(file, paths, top.values.tolist(), top.indices.tolist(), class_names)
    except OSError as error:
        raise UserError(f"{output}: {reason(error)}") from error


def _write(
    file: IO[str],
    paths: list[Path],
    values: list[list[float]],
    classes: list[list[int]],
    class_names: list[str],
) -> None:
    writer = csv.writer(file, lineterminator="\n")
    header = ["path", "label", "probability"]
    for place in range(2, len(values[0]) + 1):
        header += [f"label_{place}", f"probability_{place}"]
    writer.writerow(header)
    for path, row_values, row_classes in zip(paths, values, classes, strict=True):
        row = [str(path)]
        for value, label in zip(row_values, row_classes, strict=True):
            row += [class_names[label], f"{value:.6f}"]
        writer.writerow(row)
