"""Say what a classifier makes of image files: ``python -m lightning_modules predict``."""

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from datamodules.errors import exit_status
from datamodules.figures import check_figure, save_figure
from datamodules.images import named_images, unreadable
from datamodules.normalizer import DigitNormalizer
from datamodules.picture_files import PictureFiles
from datamodules.text import printable, short_name
from datamodules.writing import check_output, write_csv
from lightning_modules.answers import not_finite, refusal
from lightning_modules.embedded import EMBEDDED
from lightning_modules.exported import PROBABILITIES, SCORE, ExportedNetwork, program_outputs

if TYPE_CHECKING:  # an exported network answers without them
    from lightning import Trainer
    from matplotlib.figure import Figure

    from datamodules.image_files import ImageFilesDataModule
    from lightning_modules.classifier import Classifier

BATCH = 256  # files at once
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
    probabilities: npt.NDArray[np.float32]
    familiarity: npt.NDArray[np.float32]
    digits: list[int] | None

    def refusal(self, row: int) -> str:
        """Why a picture is not one of the classes; empty if it is."""
        return "" if self.digits is None else refusal(self.digits[row], float(self.familiarity[row]))


def predict_files(
    trainer: "Trainer", model: "Classifier", files: "ImageFilesDataModule", ckpt_path: str | None
) -> FilePredictions:
    """Classify image files by a Trainer, with as many processes as the trainer has.

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
    import torch
    import torch.distributed as dist

    from lightning_modules.evaluation import check_finite

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
        calibration.probabilities(logits).numpy(),
        calibration.familiarity(logits).numpy(),
        None if files.normalizer is None else [digits[row] for row in rows],
    )


def predict_exported(network: ExportedNetwork, files: PictureFiles) -> FilePredictions:
    """Classify image files by an exported network.

    Args:
        network: A classifier.
        files: The files.

    Raises:
        UserError: As ``predict_files``.
    """
    answers = []
    for start in tqdm(range(0, len(files), BATCH), desc="Predicting", delay=2, leave=False):
        answers.append(network(files.pixels(range(start, min(start + BATCH, len(files))))))
    if files.errors:
        raise unreadable([files.errors[row] for row in sorted(files.errors)], len(files))
    probabilities, score = (np.concatenate([answer[name] for answer in answers]) for name in (PROBABILITIES, SCORE))
    if not np.isfinite(probabilities).all():
        raise not_finite()
    digits = None if files.normalizer is None else [files.digits[row] for row in range(len(files))]
    return FilePredictions(files.paths, probabilities, score, digits)


def check_outputs(output: Path, figure: Path | None) -> None:
    """Refuse places where nothing can be written, before anything is computed.

    Raises:
        UserError: As ``check_output`` and ``check_figure``.
    """
    check_output(output)
    if figure is not None:
        check_figure(figure)


def write_answers(
    predictions: FilePredictions, files: PictureFiles, class_names: list[str], output: Path, figure: Path | None
) -> None:
    """Write what the command leaves, and print where it is.

    Raises:
        UserError: As ``plot_predictions``.
        OSError: A file can't be written.
    """
    write_predictions(output, predictions, class_names)
    if figure is not None:
        save_figure(plot_predictions(predictions, files, class_names), figure)
    refused = sum(bool(predictions.refusal(row)) for row in range(len(predictions.paths)))
    aside = f", {refused} not taken for a digit" if refused else ""
    print(f"{len(predictions.paths)} images{aside}: {printable(str(output))}")
    if figure is not None:
        print(f"figure: {printable(str(figure))}")


def resized_no_more(normalizer: DigitNormalizer) -> str:
    """What is said where ``--normalize none`` leaves a normalizer aside."""
    return (
        "Pictures are resized, no more. Without --normalize none, the digit on each would be drawn as "
        f"those of the training images are: {normalizer}."
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
    labels = np.argsort(-predictions.probabilities, axis=1, kind="stable")[:, :count]
    values = np.take_along_axis(predictions.probabilities, labels, axis=1)
    rows: list[list[object]] = [["path", *(name.format("") for name in COLUMNS)]]
    rows[0] += [name.format(f"_{place}") for place in range(2, count + 1) for name in COLUMNS]
    counted = predictions.digits is not None
    rows[0] += ["is_digit", "score", "reason"] if counted else []
    for row, path in enumerate(predictions.paths):
        why = predictions.refusal(row)
        cells: list[object] = []
        for value, label in zip(values[row].tolist(), labels[row].tolist(), strict=True):
            cells += [class_names[label], f"{value:.6f}"]
        score = float(predictions.familiarity[row])
        if predictions.digits is not None and predictions.digits[row] == 0:
            cells, score = [NONE, *[""] * (len(cells) - 1)], 0.0
        rows.append([path, *cells, *(["no" if why else "yes", f"{score:.6f}", why] if counted else [])])
    write_csv(output, rows)


def plot_predictions(predictions: FilePredictions, files: PictureFiles, class_names: list[str]) -> "Figure":
    """Each picture with what was found on it, what the network saw of it, and the answer; the first 30 of many.

    Raises:
        UserError: A file can no longer be read.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

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
        label = int(predictions.probabilities[row].argmax())
        answer = f"{short_name(class_names[label], 14)}, {predictions.probabilities[row, label]:.0%}"
        left.set_title(short_name(path.name, 24), fontsize=8, parse_math=False)
        text = f"not a digit:\n{why}" if why else answer
        right.set_title(text, fontsize=8, color="tab:red" if why else "black", parse_math=False)
        for axes in (left, right):
            axes.set_axis_off()
    if len(predictions.paths) > count:
        figure.suptitle(f"The first {count} of {len(predictions.paths)} images", fontsize=9)
    return figure


class _Options(argparse.ArgumentParser):
    """Options that Lightning's command line has, too, which says what is wrong with them."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that Lightning's ``predict`` doesn't have."""
    parser.add_argument(
        "--images",
        nargs="+",
        type=str,
        required=True,
        metavar="PATH",
        help="Image files, or folders of them; what comes first needs no --images.",
    )
    parser.add_argument(
        "--normalize",
        choices=("auto", "none"),
        default="auto",
        help="Bring pictures of digits into the form of the images that the network was trained on, or not.",
    )
    parser.add_argument("--figure", type=str, help="A picture of what was found on each image (PNG, PDF, SVG).")
    parser.add_argument("--output", type=str, default="predictions.csv", help="The CSV file to write.")


def quick_options(args: list[str]) -> argparse.Namespace | None:
    """The options of a command line that an exported network can answer; None where it needs Lightning's."""
    parser = _Options(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path", type=Path, default=EMBEDDED)
    add_options(parser)
    try:
        options, others = parser.parse_known_args(args)
    except ValueError:
        return None
    return None if others or "WORLD_SIZE" in os.environ else options  # torchrun's processes share the files


def with_images_named(args: list[str]) -> list[str]:
    """``photo.jpg scans/ …`` as ``--images photo.jpg scans/ …``: Lightning's command line knows options alone."""
    return ["--images", *args] if args and not args[0].startswith("-") else args


def main(args: list[str] | None = None) -> int:
    """Run the command; returns its exit status.

    The program of an exported folder answers on the CPU, in a fraction of the time that PyTorch takes to be imported.
    All else is Lightning's: checkpoints, exports without a program, a GPU and the other options of the Trainer.
    """
    args = with_images_named(sys.argv[1:] if args is None else args)
    options = quick_options(args)
    if options is not None and SCORE in program_outputs(options.ckpt_path):
        return exit_status(lambda: answer(options))
    from lightning_modules.cli import main as main_of_lightning

    return main_of_lightning(["predict", *args])


def answer(options: argparse.Namespace) -> None:
    """Classify image files by the program of an exported folder and say where the result is."""
    output, figure = Path(options.output), Path(options.figure) if options.figure else None
    check_outputs(output, figure)
    network = ExportedNetwork(options.ckpt_path)
    paths, notes = named_images(map(Path, options.images))
    normalizer = network.normalizer if options.normalize == "auto" else None
    if network.normalizer is not None and normalizer is None:
        notes = [resized_no_more(network.normalizer), *notes]
    for note in notes:
        print(note, file=sys.stderr)
    files = PictureFiles(paths, network.image_size, network.in_channels, normalizer)
    write_answers(predict_exported(network, files), files, network.class_names, output, figure)
