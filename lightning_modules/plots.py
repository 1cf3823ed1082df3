"""The pictures of a run; each function returns a figure and shows nothing."""

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from datamodules.dataset import Batch, ImageDataset
from datamodules.strings import Lines
from datamodules.text import as_text, short_name
from lightning_modules.ctc import as_lists
from lightning_modules.evaluation import Predictions
from lightning_modules.reading import Readings
from lightning_modules.tuning import RangeTest

MAX_WRITTEN_CLASSES = 20  # beyond this the numbers in a confusion matrix can't be read


def plot_accuracy(epochs: list[dict[str, float]], best_epoch: int, best: float) -> Figure:
    """Training and validation accuracy per epoch, with a dashed line at the best epoch.

    Args:
        epochs: For each epoch ``epoch`` (from 1), ``train_accuracy`` and ``val_accuracy``, in [0, 1].
        best_epoch: Where the line stands.
        best: The validation accuracy that is written beside it.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    x = [row["epoch"] for row in epochs]
    axes.plot(x, [100 * row["train_accuracy"] for row in epochs], "o-", ms=3, label="training (augmented)")
    axes.plot(x, [100 * row["val_accuracy"] for row in epochs], "o-", ms=3, label="validation")
    axes.axvline(best_epoch, color="black", ls="--", lw=1, label=f"best epoch {best_epoch}: {best:.2%}")
    frame_accuracies(axes, [[100 * row[key] for row in epochs for key in ("train_accuracy", "val_accuracy")]])
    axes.set_title("Accuracy per epoch")
    return figure


def frame_accuracies(axes: Axes, runs: list[list[float]]) -> None:
    """Label axes of accuracy per epoch, and choose what they show of the accuracies of some runs, in per cent."""
    floors = []
    for shown in runs:
        median = float(np.median(shown))
        # The first epochs of a run from scratch would press all that matters into the top edge.
        floors.append(max(min(shown), median - 4 * (100 - median) - 1))
    bottom = min(floors)
    margin = 0.05 * (100 - bottom) + 0.1  # the curves are off the edge also where all is right
    axes.set_ylim(bottom - margin, 100 + margin)
    axes.set(xlabel="epoch", ylabel="accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    for text in axes.legend(loc="lower right").get_texts():
        text.set_parse_math(False)  # a run may be called anything


def plot_range_test(found: RangeTest) -> Figure:
    """Training loss as the learning rate grows, with a dashed line at the rate that was chosen."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses)
    axes.axvline(found.suggestion, color="black", ls="--", lw=1, label=f"chosen: {found.suggestion:g}")
    axes.set_xscale("log")
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.2 * found.losses[0]))  # where it diverges it is off the edge
    axes.set(xlabel="learning rate", ylabel="training loss (running average)", title="Range test of the learning rate")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def plot_classes(
    train: npt.NDArray[np.int64], val: npt.NDArray[np.int64], class_names: list[str], most: int = 60
) -> Figure:
    """How many images of each class are trained on and validated, the rarest class first.

    Args:
        train: (K,), int64.
        val: (K,), int64.
        class_names: Names of the classes.
        most: Show no more classes than this, the rarest.
    """
    shown = np.argsort(train, kind="stable")[:most]
    figure = Figure(figsize=(8, 1.6 + 0.25 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(shown))
    axes.barh(places, train[shown], label="training")
    axes.barh(places, val[shown], left=train[shown], label="validation")
    for place, row in enumerate(shown):
        axes.text(train[row] + val[row], place, f" {train[row]} + {val[row]}", va="center", fontsize=8)
    axes.set_yticks(places, [short_name(class_names[row]) for row in shown], parse_math=False)
    axes.set(xlabel="images", ylim=(len(shown) - 0.4, -0.6))
    axes.margins(x=0.12)  # for the numbers
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside lower center", ncols=2)
    left_out = f", the {most} rarest of {len(train)}" if len(train) > most else ""
    axes.set_title(f"Images of each class{left_out}")
    return figure


def plot_confusion_matrix(predictions: Predictions, class_names: list[str]) -> Figure:
    """How many images of each class were taken for which; colours are shares of the row."""
    counts = predictions.confusion.numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.45 * len(class_names), 16)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    ticks, labels = range(len(class_names)), [short_name(name) for name in class_names]
    axes.set_xticks(ticks, labels, rotation=45, ha="right", rotation_mode="anchor", parse_math=False)
    axes.set_yticks(ticks, labels, parse_math=False)
    axes.set(
        xlabel="predicted",
        ylabel="true",
        title=f"Validation images: {predictions.accuracy:.2%} right",
    )
    if len(class_names) <= MAX_WRITTEN_CLASSES:
        for row, column in zip(*np.nonzero(counts), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=colour)
    return figure


def plot_mistakes(dataset: ImageDataset, predictions: Predictions, class_names: list[str], most: int = 24) -> Figure:
    """The most confident wrong predictions, with what they are, what they were taken for and their files.

    Args:
        dataset: The validation images.
        predictions: What is predicted of them.
        class_names: Names of the classes.
        most: Show no more than this many.
    """
    wrong = (predictions.predicted != predictions.labels).nonzero().flatten()
    confidence = predictions.probabilities.amax(dim=1)
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:most].tolist()
    figure = _grid(_rows(dataset.batch(worst).images), height=1.75)  # with room for three lines
    names = dataset.names
    for axes, row in zip(figure.axes, worst, strict=True):
        true = short_name(class_names[predictions.labels[row]], 14)
        taken = short_name(class_names[predictions.predicted[row]], 14)
        title = f"{true} taken for\n{taken} ({confidence[row]:.0%})\n{short_name(names[row], 22)}"
        axes.set_title(title, fontsize=7, parse_math=False)
    shown = f", the {len(worst)} most confident" if len(wrong) > len(worst) else ""
    figure.suptitle(f"Classified wrong: {len(wrong)} of {len(dataset)} validation images{shown}")
    return figure


def plot_augmentation(images: Tensor, augmented: Tensor) -> Figure:
    """Images of a batch and, under each, what augmentation makes of it.

    Args:
        images: (B, C, H, W), uint8.
        augmented: (B, C, H, W), uint8, or float in [0, 1].
    """
    pairs = zip(_rows(images), _rows(augmented), strict=True)
    figure = _grid([row for pair in pairs for row in pair])
    figure.suptitle("Training images, and under each what augmentation makes of it")
    return figure


def plot_lines(batch: Batch, class_names: list[str]) -> Figure:
    """Lines as training sees them, each with its text."""
    figure = _columns(batch.images.numpy())
    for axes, text in zip(figure.axes, as_lists(batch.labels), strict=True):
        axes.set_title(short_name(as_text(text, class_names), 30), fontsize=9, parse_math=False)
    figure.suptitle("Training lines, as the first epoch sees them")
    return figure


def plot_misread(lines: Lines, readings: Readings, class_names: list[str], most: int = 24) -> Figure:
    """The most confident wrong readings, with what is written, what was read and the files.

    Args:
        lines: The validation lines.
        readings: What is read on them.
        class_names: The signs.
        most: Show no more than this many.
    """
    wrong = (~readings.right).nonzero().flatten()
    worst = wrong[readings.confidence[wrong].argsort(descending=True, stable=True)][:most].tolist()
    figure = _columns(lines.batch(worst).images.numpy())
    for axes, row in zip(figure.axes, worst, strict=True):
        text, read = (as_text(part[row], class_names) for part in (readings.texts, readings.read))
        title = f"{text} read as {read or 'nothing'} ({readings.confidence[row]:.0%})"
        axes.set_title(f"{title}\n{short_name(lines.names[row], 40)}", fontsize=7, parse_math=False)
    shown = f", the {len(worst)} most confident" if len(wrong) > len(worst) else ""
    figure.suptitle(f"Read wrong: {len(wrong)} of {len(lines)} validation lines{shown}")
    return figure


def _columns(lines: npt.NDArray[np.generic], columns: int = 3) -> Figure:
    """(N, 1, H, W), uint8 or float in [0, 1]: lines side by side."""
    rows = max(-(-len(lines) // columns), 1)
    figure = Figure(figsize=(3.2 * columns, 1.05 * rows + 0.4), layout="constrained")
    for place, line in enumerate(lines):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(line[0], cmap="gray", vmin=0, vmax=255 if line.dtype == np.uint8 else 1)
        axes.set_axis_off()
    return figure


def _rows(images: Tensor, columns: int = 8) -> list[npt.NDArray[np.generic]]:
    return [images[start : start + columns].numpy() for start in range(0, len(images), columns)]


def _grid(rows: list[npt.NDArray[np.generic]], height: float = 1.45) -> Figure:
    columns = max(map(len, rows), default=0)
    # The title needs some width, however few images there are.
    figure = Figure(figsize=(1.45 * max(columns, 4), height * max(len(rows), 1) + 0.4), layout="constrained")
    for number, row in enumerate(rows):
        for place, image in enumerate(row):
            axes = figure.add_subplot(len(rows), columns, number * columns + place + 1)
            white = 255 if image.dtype == np.uint8 else 1
            axes.imshow(image.transpose(1, 2, 0).squeeze(), cmap="gray", vmin=0, vmax=white)
            axes.set_axis_off()
    return figure
