"""Write down what a classifier says of image files."""

import itertools
from pathlib import Path

import torch
import torch.distributed as dist
from lightning import Trainer
from torch import Tensor

from datamodules.errors import UserError
from datamodules.image_files import ImageFilesDataModule
from datamodules.writing import write_csv
from lightning_modules.classifier import Classifier
from lightning_modules.evaluation import check_finite

TOP = 3
COLUMNS = ("label{}", "probability{}")


def predict_files(
    trainer: Trainer, model: Classifier, files: ImageFilesDataModule, ckpt_path: str | None
) -> tuple[list[Path], Tensor]:
    """Classify image files, with as many processes as the trainer has.

    Args:
        trainer: Where and how to compute; made with ``use_distributed_sampler=False``, if it has several processes.
        model: The classifier.
        files: The files.
        ckpt_path: Checkpoint with the model's weights; None where the model has them already.

    Returns:
        N files, in the order given, and (N, K), float32, the class probabilities of each: all files, unless the
            trainer limits the batches.

    Raises:
        UserError: A file is missing or can't be read, or the network's probabilities are not finite.
    """
    parts = trainer.predict(model, datamodule=files, ckpt_path=ckpt_path, weights_only=True)
    assert files.predict_set is not None
    # Lightning gives None where there was no batch, as in a process that has no share of a few files.
    shares = [(parts or [], files.predict_set.errors)] * trainer.world_size
    if trainer.world_size > 1:
        dist.all_gather_object(shares, shares[0])  # as objects, since NCCL takes no tensor of the CPU
    errors = {index: text for _, broken in shares for index, text in broken.items()}
    if errors:
        broken = "\n  ".join(errors[index] for index in sorted(errors))
        raise UserError(
            f"{len(errors)} of {len(files.predict_set)} images can't be read, so nothing is written; "
            f"repair them or leave them out:\n  {broken}"
        )
    batches = [batch for parts, _ in shares for batch in parts]
    indices = torch.cat([torch.zeros(0, dtype=torch.int64), *(indices for indices, _ in batches)])
    probabilities = check_finite(torch.cat([torch.zeros(0, len(model.class_names)), *(part for _, part in batches)]))
    order = indices.argsort()
    return [files.predict_set.paths[index] for index in indices[order].tolist()], probabilities[order]


def write_predictions(output: Path, paths: list[Path], probabilities: Tensor, class_names: list[str]) -> None:
    """Write a CSV: path, label, probability, then label and probability of the next best classes.

    Raises:
        OSError: The file can't be written.
    """
    count = min(TOP, len(class_names))
    top = probabilities.topk(count, dim=1)
    rows: list[list[object]] = [["path", *(name.format("") for name in COLUMNS)]]
    rows[0] += [name.format(f"_{place}") for place in range(2, count + 1) for name in COLUMNS]
    for path, values, labels in zip(paths, top.values.tolist(), top.indices.tolist(), strict=True):
        cells = [(class_names[label], f"{value:.6f}") for value, label in zip(values, labels, strict=True)]
        rows.append([path, *itertools.chain.from_iterable(cells)])
    write_csv(output, rows)
