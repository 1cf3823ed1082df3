"""What a run says of its best network at the end: figures for its summary, and pictures."""

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from lightning import LightningDataModule
from matplotlib.figure import Figure

from datamodules.base import ImageDataModule
from datamodules.dataset import ImageDataset, gather
from datamodules.strings import StringsDataModule
from lightning_modules.classifier import Classifier
from lightning_modules.evaluation import Predictions, evaluate
from lightning_modules.evaluation import calibrate as fit_calibration
from lightning_modules.network import Network
from lightning_modules.networks.line_reader import LineReader
from lightning_modules.plots import plot_confusion_matrix, plot_misread, plot_mistakes
from lightning_modules.reading import Readings, read_dataset


@dataclass(frozen=True)
class Assessment:
    """What is said of a network.

    Attributes:
        right: Validation images that it has right.
        count: Validation images.
        more: What else the summary says.
        figures: Pictures, by the names of their files.
    """

    right: int
    count: int
    more: dict[str, Any]
    figures: dict[str, Figure]


@singledispatch
def score(model: Network, data: LightningDataModule, calibrate: bool = False) -> Any:
    """What a network says of the validation images, and what is true.

    Args:
        model: The network.
        data: What it was trained on.
        calibrate: Fit the network's calibration to them first.

    Returns:
        ``Predictions`` of a classifier, ``Readings`` of a reader.

    Raises:
        UserError: Its outputs are not finite.
    """
    raise NotImplementedError(type(model).__name__)


@score.register
def _(model: Classifier, data: LightningDataModule, calibrate: bool = False) -> Predictions:
    images = _images(data) or data.val_dataloader()
    return fit_calibration(model, images) if calibrate else evaluate(model, images)


@score.register
def _(model: LineReader, data: StringsDataModule, calibrate: bool = False) -> Readings:
    assert data.val_set is not None
    return read_dataset(model, data.val_set, calibrate=calibrate)


@singledispatch
def assess(model: Network, data: LightningDataModule) -> Assessment:
    """Calibrate a network by the validation images, and say how well it does.

    Args:
        model: The network, of its best epoch.
        data: What it was trained on.
    """
    raise NotImplementedError(type(model).__name__)


@assess.register
def _(model: Classifier, data: LightningDataModule) -> Assessment:
    found = score(model, data, calibrate=True)
    images = _images(data) or gather(data.val_dataloader())
    return Assessment(
        int(found.right.sum()),
        len(found.right),
        found.by_class(model.class_names),
        {
            "confusion_matrix": plot_confusion_matrix(found, model.class_names),
            "mistakes": plot_mistakes(images, found, model.class_names),
        },
    )


@assess.register
def _(model: LineReader, data: StringsDataModule) -> Assessment:
    found = score(model, data, calibrate=True)
    assert data.val_set is not None
    return Assessment(
        int(found.right.sum()),
        len(found.right),
        {"val_sign_accuracy": found.sign_accuracy},
        {"mistakes": plot_misread(data.val_set, found, model.class_names)},
    )


def _images(data: LightningDataModule) -> ImageDataset | None:
    """The validation images of one of our datamodules; None of another's."""
    return data.val_set if isinstance(data, ImageDataModule) else None
