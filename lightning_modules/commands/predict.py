"""Write down what a classifier says of image files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from lightning import Trainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from datamodules.image_files import ImageFileDataset, ImageFilesDataModule
from datamodules.images import unreadable
from datamodules.text import short_name
from datamodules.writing import write_csv
from lightning_modules.calibration import refusal
from lightning_modules.classifier import Classifier
from lightning_modules.evaluation import check_finite

TOP = 3
MAX_SHOWN = 30  # pictures in a figure
SIDE = 300  # pixels that a picture is drawn with at most
COLUMNS = ("label{}", "probability{}")
NONE = "none"  # the label of a picture that nothing is on


@dataclass(frozen=True)
class FilePredictions:
    """What a classifier says of files.

    Attributes:
        paths: N files.
        probabilities: (N, K), float32.
        familiarity: (N,), float32 in [0, 1]: below 0.5 shows none of the classes, as far as the network can tell.
        digits: How many digits each shows; None where pictures are not looked through for digits.
    """

    paths: list[Path]
    probabilities: Tensor
    familiarity: Tensor
    digits: list[int] | None

    def refusal(self, row: int) -> str:
        """Why a picture is not one of the classes; empty if it is."""
        return "" if self.digits is None else refusal(self.digits[row], self.familiarity[row].item())


def predict_files(
    trainer: Trainer, model: Classifier, files: ImageFilesDataModule, ckpt_path: str | None
) -> FilePredictions:
    """Classify image files, with as many processes as the trainer has.

    Args:
        trainer: Where and how to compute; made with ``use_distributed_sampler=False``, if it has several processes.
        model: The classifier.
        files: The files.
        ckpt_path: Checkpoint with the model's weights; None where the model has them already.

    Returns:
        What it says of the files, in the order given: all of them, unless the trainer limits the batches.

    Raises:
        UserError: A file is missing or can't be read, or the network's class scores are not finite.
    """
    parts = trainer.predict(model, datamodule=files, ckpt_path=ckpt_path, weights_only=True)
    assert files.predict_set is not None
    # Lightning gives None where there was no batch, as in a process that has no share of a few files.
    shares = [(parts or [], files.predict_set.errors, files.predict_set.digits)] * trainer.world_size
    if trainer.world_size > 1:
        dist.all_gather_object(shares, shares[0])  # as objects, since NCCL takes no tensor of the CPU
    errors = {index: text for _, broken, _ in shares for index, text in broken.items()}
    if errors:
        raise unreadable([errors[index] for index in sorted(errors)], len(files.predict_set))
    batches = [batch for parts, _, _ in shares for batch in parts]
    digits = {index: count for _, _, counted in shares for index, count in counted.items()}
    indices = torch.cat([torch.zeros(0, dtype=torch.int64), *(indices for indices, _ in batches)])
    logits = check_finite(torch.cat([torch.zeros(0, len(model.class_names)), *(part for _, part in batches)]))
    order = indices.argsort()
    rows, logits = indices[order].tolist(), logits[order]
    calibration = model.calibration.cpu()
    return FilePredictions(
        [files.predict_set.paths[row] for row in rows],
        calibration.probabilities(logits),
        calibration.familiarity(logits),
        None if files.normalizer is None else [digits[row] for row in rows],
    )


def write_predictions(output: Path, predictions: FilePredictions, class_names: list[str]) -> None:
    """Write a CSV: path, label, probability, then label and probability of the next best classes.

    Where pictures are looked through for digits, there follow ``is_digit`` (yes or no), ``score`` (how like the
    training images a picture is, in [0, 1]; below 0.5 is not a digit) and ``reason`` (why it is not). The label of a
    picture that nothing is on is ``none``; of another that is not a digit it is what it resembles most.

    Raises:
        OSError: The file can't be written.
    """
    count = min(TOP, len(class_names))
    top = predictions.probabilities.topk(count, dim=1)
    rows: list[list[object]] = [["path", *(name.format("") for name in COLUMNS)]]
    rows[0] += [name.format(f"_{place}") for place in range(2, count + 1) for name in COLUMNS]
    counted = predictions.digits is not None
    rows[0] += ["is_digit", "score", "reason"] if counted else []
    values, labels, familiarity = top.values.tolist(), top.indices.tolist(), predictions.familiarity.tolist()
    for row, path in enumerate(predictions.paths):
        why = predictions.refusal(row)
        cells: list[object] = []
        for value, label in zip(values[row], labels[row], strict=True):
            cells += [class_names[label], f"{value:.6f}"]
        score = familiarity[row]
        if predictions.digits is not None and predictions.digits[row] == 0:
            cells, score = [NONE, *[""] * (len(cells) - 1)], 0.0
        rows.append([path, *cells, *(["no" if why else "yes", f"{score:.6f}", why] if counted else [])])
    write_csv(output, rows)


def plot_predictions(predictions: FilePredictions, files: ImageFileDataset, class_names: list[str]) -> Figure:
    """Each picture with what was found on it, what the network saw of it, and the answer; the first 30 of many.

    Raises:
        UserError: A file can no longer be read.
    """
    count = min(len(predictions.paths), MAX_SHOWN)
    columns = min(count, 3)
    rows = -(-count // max(columns, 1))
    figure = Figure(figsize=(4.2 * max(columns, 1), 2.7 * max(rows, 1) + 0.3), layout="constrained")
    for row, path in enumerate(predictions.paths[:count]):
        image = files.read(path)
        seen = files.see(image)
        small = image.copy()
        small.thumbnail((SIDE, SIDE))
        left, right = (figure.add_subplot(rows, 2 * columns, 2 * row + place) for place in (1, 2))
        left.imshow(np.asarray(small))
        right.imshow(seen.pixels.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=255)
        zoom = small.width / image.width
        x0, y0, x1, y1 = (zoom * edge - 0.5 for edge in seen.box)
        why = predictions.refusal(row)
        if seen.digits and predictions.digits is not None:
            colour = "tab:red" if why else "tab:green"
            left.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.5))
        value, label = predictions.probabilities[row].max(dim=0)
        answer = f"{short_name(class_names[label], 14)}, {value:.0%}"
        left.set_title(short_name(path.name, 24), fontsize=8, parse_math=False)
        text = f"not a digit:\n{why}" if why else answer
        right.set_title(text, fontsize=8, color="tab:red" if why else "black", parse_math=False)
        for axes in (left, right):
            axes.set_axis_off()
    if len(predictions.paths) > count:
        figure.suptitle(f"The first {count} of {len(predictions.paths)} images", fontsize=9)
    return figure
