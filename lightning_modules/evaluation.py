"""Run a classifier over a dataset, outside of a Trainer."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.dataset import ImageDataset, as_batch
from datamodules.loading import batches
from lightning_modules.answers import not_finite
from lightning_modules.calibration import expected_calibration_error
from lightning_modules.classifier import Classifier
from lightning_modules.hardware import full_precision


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of a dataset, and what is true.

    Attributes:
        probabilities: (N, K), float32, in the order of the dataset.
        labels: (N,), int64.
        logits: (N, K), float32: the class scores that the probabilities are of.
    """

    probabilities: Tensor
    labels: Tensor
    logits: Tensor

    @property
    def predicted(self) -> Tensor:
        """(N,), int64: the most probable class."""
        return self.probabilities.argmax(dim=1)

    @property
    def right(self) -> Tensor:
        """(N,), bool."""
        return self.predicted == self.labels

    @property
    def accuracy(self) -> float:
        """Share of the images that are classified right, in [0, 1]."""
        return self.right.float().mean().item()

    @property
    def calibration_errors(self) -> tuple[float, float]:
        """Expected calibration error before and after temperature scaling."""
        before = expected_calibration_error(self.logits.softmax(dim=1), self.labels)
        return before, expected_calibration_error(self.probabilities, self.labels)

    @property
    def confusion(self) -> Tensor:
        """(K, K), int64: images of the row's class that were taken for the column's."""
        classes = self.probabilities.shape[1]
        pairs = self.labels * classes + self.predicted
        return torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def by_class(self, class_names: list[str]) -> dict[str, dict[str, Any]]:
        """What a summary says of each class: its accuracy, nan where it has no images, and how many it has."""
        counts = self.confusion.sum(dim=1)
        accuracies = self.confusion.diag() / counts
        return {
            "val_accuracy_per_class": dict(zip(class_names, accuracies.tolist(), strict=True)),
            "val_images_per_class": dict(zip(class_names, counts.tolist(), strict=True)),
        }


@torch.inference_mode()
def evaluate(model: Classifier, images: ImageDataset | Iterable[Any], batch_size: int = 64) -> Predictions:
    """Predict images, on the model's device, in full precision.

    Args:
        model: The classifier; it is in eval mode afterwards as it was before.
        images: A dataset, or batches of any datamodule.
        batch_size: Images at once, of a dataset.

    Raises:
        UserError: The network's class scores are not finite.
    """
    was_training = model.training
    model.eval()
    loader = batches(images, batch_size) if isinstance(images, ImageDataset) else images
    parts, labels = [], []
    with full_precision(model.device):
        for batch in map(as_batch, tqdm(loader, desc="Evaluating", delay=2, leave=False)):
            parts.append(model(batch.images.to(model.device)).float())
            labels.append(batch.labels)
        logits = check_finite(torch.cat(parts))
        probabilities = model.calibration.probabilities(logits).cpu()
    model.train(was_training)
    return Predictions(probabilities, torch.cat(labels), logits.cpu())


def calibrate(model: Classifier, images: ImageDataset | Iterable[Any]) -> Predictions:
    """Fit a trained network's calibration to validation images.

    Args:
        model: The classifier.
        images: A dataset, or batches of any datamodule.

    Returns:
        What it predicts of them, once calibrated.

    Raises:
        UserError: As ``evaluate``.
    """
    found = evaluate(model, images)
    calibration = model.calibration.cpu()
    calibration.fit(found.logits, found.labels)
    probabilities = calibration.probabilities(found.logits)
    calibration.to(model.device)
    return replace(found, probabilities=probabilities)


def check_finite(logits: Tensor) -> Tensor:
    """Class scores as they are.

    Raises:
        UserError: Some are not finite.
    """
    if not torch.isfinite(logits).all():
        raise not_finite()
    return logits
