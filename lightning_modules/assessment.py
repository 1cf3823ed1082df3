"""What a run says of its best network at the end: figures for its summary, and pictures."""

from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from lightning import LightningDataModule
from matplotlib.figure import Figure

from datamodules.base import ImageDataModule
from datamodules.dataset import gather
from datamodules.strings import StringsDataModule
from lightning_modules.classifier import Classifier
from lightning_modules.evaluation import calibrate
from lightning_modules.network import Network
from lightning_modules.networks.line_reader import LineReader
from lightning_modules.plots import plot_confusion_matrix, plot_misread, plot_mistakes
from lightning_modules.reading import read_dataset


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
def assess(model: Network, data: LightningDataModule) -> Assessment:
    """Calibrate a network by the validation images, and say how well it does.

    Args:
        model: The network, of its best epoch.
        data: What it was trained on.
    """
    raise NotImplementedError(type(model).__name__)


@assess.register
def _(model: Classifier, data: LightningDataModule) -> Assessment:
    images = data.val_set if isinstance(data, ImageDataModule) else None
    found = calibrate(model, images or data.val_dataloader())
    per_class = found.confusion.diag() / found.confusion.sum(dim=1)
    return Assessment(
        int(found.confusion.diag().sum()),
        len(found.labels),
        {"val_accuracy_per_class": dict(zip(model.class_names, per_class.tolist(), strict=True))},
        {
            "confusion_matrix": plot_confusion_matrix(found, model.class_names),
            "mistakes": plot_mistakes(images or gather(data.val_dataloader()), found, model.class_names),
        },
    )


@assess.register
def _(model: LineReader, data: StringsDataModule) -> Assessment:
    assert data.val_set is not None
    found = read_dataset(model, data.val_set, calibrate=True)
    return Assessment(
        int(found.right.sum()),
        len(found.texts),
        {"val_sign_accuracy": found.sign_accuracy},
        {"mistakes": plot_misread(data.val_set, found, model.class_names)},
    )
