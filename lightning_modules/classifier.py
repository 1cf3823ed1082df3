"""What all classifiers share: class scores from pooled features, their loss and metrics."""

from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics import ClasswiseWrapper, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassStatScores

from datamodules.base import ImageDataModule
from datamodules.dataset import OUTLIER, Batch
from datamodules.errors import UserError
from datamodules.normalizer import DigitNormalizer
from datamodules.strings import StringsDataModule
from datamodules.text import printable
from lightning_modules.calibration import Calibration
from lightning_modules.exported import PROBABILITIES, SCORE
from lightning_modules.network import Network
from lightning_modules.recipe import Recipe

UNEQUAL = 10  # times as many images of one class as of another, and training says so


class ClassAccuracy(MulticlassStatScores):
    """Accuracy of each class, (K,), nan where it has no images: MulticlassAccuracy would have it 0."""

    def compute(self) -> Tensor:
        """Share of a class's images that are classified right."""
        scores = super().compute()  # (K, 5): true and false positives, true and false negatives, images
        return scores[:, 0] / scores[:, 4]


class Classifier(Network):
    """An image classifier: a subclass gives ``forward_pooled`` and ``forward_head``.

    What a subclass is constructed with is kept as its hyper-parameters: a checkpoint says how to build it again.

    Args:
        class_names: Names of the classes, in the order of the outputs.
        in_channels: Channels of the data: 1 for grey, 3 for colour.
        image_size: Side of the square images that the datamodule yields, in pixels. Other sizes are taken too; this
            is what a file is resized to before it is predicted.
        recipe: How it is trained.

    Raises:
        UserError: There are fewer than two classes, or not as many class weights.
    """

    calibration: Calibration

    def __init__(
        self,
        class_names: list[str],
        in_channels: int,
        image_size: int,
        recipe: Recipe = Recipe(),
    ) -> None:
        super().__init__(class_names=class_names, in_channels=in_channels, image_size=image_size, recipe=recipe)
        if len(class_names) < 2:
            raise UserError(f"a classifier needs at least two classes, got {class_names}")
        weights = recipe.class_weights
        if isinstance(weights, list) and len(weights) != len(class_names):
            raise UserError(f"class_weights has {len(weights)} numbers for {len(class_names)} classes")
        self.class_weights: Tensor | None = None  # (K,), float32, on the network's device; found by `fit`
        self.normalizer: DigitNormalizer | None = None  # how the digits of the training images lie; found by `fit`
        self.calibration = Calibration()
        self.teachers: list[Classifier] = []  # a plain list: they are no part of this network's state
        accuracy = MulticlassAccuracy(len(class_names), average="micro", ignore_index=OUTLIER)
        per_class = ClasswiseWrapper(ClassAccuracy(len(class_names), average=None), self.class_names, "accuracy/")
        self.train_metrics = MetricCollection({"accuracy": accuracy}, prefix="train_")
        self.val_metrics = self.train_metrics.clone(prefix="val_")
        self.test_metrics = MetricCollection({"accuracy": accuracy.clone(), "per_class": per_class}, prefix="test_")

    @property
    def reads_photographs(self) -> bool:
        """Whether it is made for photographs, by which ``fit`` gives advice."""
        return False

    def forward_pooled(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> (B, D), float: pooled features."""
        raise NotImplementedError

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> (B, D, h, w), float: maps that the pooled features average.

        Raises:
            UserError: The pooled features of this network are not such an average.
        """
        raise UserError(
            f"the features of {type(self).__name__} are not an average over positions, so they can't be explained"
        )

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K), float: class scores (logits)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Classify the datamodule's raw batch.

        Args:
            images: (B, C, H, W), uint8, or float in [0, 1], of any size.

        Returns:
            (B, K), float: class scores (logits), in the order of ``class_names``.
        """
        return self.forward_head(self.forward_pooled(images))

    def probabilities(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> (B, K), float32: class probabilities, calibrated by temperature."""
        return self.calibration.probabilities(self(images))

    def answers(self, images: Tensor) -> dict[str, Tensor]:
        """The probabilities, and the score: (B,), float32 in [0, 1], below 0.5 for what shows none of the classes."""
        logits = self(images)
        return {PROBABILITIES: self.calibration.probabilities(logits), SCORE: self.calibration.familiarity(logits)}

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of (B, K) logits and (B,) labels, with label smoothing.

        Images that show none of the classes are to have all probabilities alike, as if their label were smoothed
        altogether (outlier exposure; Hendrycks et al. 2019, https://arxiv.org/abs/1812.04606).
        """
        return _cross_entropy(outputs, labels, self.recipe.label_smoothing)

    def training_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The loss, in which each image has the weight of its class; half of it from the teachers, if there are any."""
        if self.class_weights is None:
            loss = super().training_loss(outputs, batch)
        else:
            loss = _cross_entropy(outputs, batch.labels, self.recipe.label_smoothing, self.class_weights)
        if not self.teachers or len(batch.labels) == 0:
            return loss
        return (loss + self._loss_to_teachers(outputs, batch)) / 2

    def _loss_to_teachers(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy to what the teachers say on average of the same, augmented images.

        Knowledge distillation (Hinton et al. 2015, https://arxiv.org/abs/1503.02531), without a temperature, with the
        same views for both sides (Beyer et al. 2022, https://arxiv.org/abs/2106.05237).
        """
        with torch.no_grad():
            answers = [teacher(batch.images).float().softmax(dim=1) for teacher in self.teachers]
            taught = torch.stack(answers).mean(dim=0)
            taught[batch.labels == OUTLIER] = 1 / len(self.class_names)  # whatever the teachers may take it for
        return -(taught * outputs.float().log_softmax(dim=1)).sum(dim=1).mean()

    def reported_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy without label smoothing and weights."""
        return _cross_entropy(outputs, labels)

    def check_data(self, data: LightningDataModule) -> None:
        """Take images of one class each, no lines.

        Raises:
            UserError: The datamodule gives lines.
        """
        if isinstance(data, StringsDataModule):
            raise UserError(
                f"StringsDataModule has lines, which a {type(self).__name__} can't read: --model LineReader"
            )

    def on_fit_start(self) -> None:
        """Learn how digits lie in the images, and how many there are of each class.

        Raises:
            UserError: As for every network; or the weights of the classes can't follow from the data.
        """
        super().on_fit_start()
        data = getattr(self.trainer, "datamodule", None)
        weights = self.recipe.class_weights
        if isinstance(data, ImageDataModule):
            self.normalizer = data.fit_normalizer()
            if self.normalizer is None and data.in_channels == 3 and not self.reads_photographs:
                rank_zero_info(
                    "The images look like photographs: in colour, and not of strokes on an even ground. "
                    "configs/photographs.yaml is the recipe for such."
                )
            assert data.train_set is not None
            counts = torch.from_numpy(data.train_set.class_counts(len(self.class_names)))
            if weights is None and not data.balance:
                self._tell_of_rare_classes(counts)
            elif weights is not None and data.balance:
                raise UserError("class_weights and data.balance both make up for rare classes: leave one of them out")
            elif weights == "auto":
                weights = (counts.sum() / (len(counts) * counts)).tolist()
        elif weights == "auto":
            raise UserError(f"class_weights auto can't count the images of {type(data).__name__}: give numbers")
        if weights is not None:
            self.class_weights = torch.tensor(weights, device=self.device)

    def _tell_of_rare_classes(self, counts: Tensor) -> None:
        rare, common = int(counts.argmin()), int(counts.argmax())
        if counts[common] > UNEQUAL * counts[rare]:
            rank_zero_info(
                f"Classes are unequal: {counts[rare]} images of {printable(self.class_names[rare])} to train on, "
                f"{counts[common]} of {printable(self.class_names[common])}. --data.balance true trains on each "
                "equally often, --model.class_weights auto counts rare ones more."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how digits lie in the images, too."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["normalizer"] = None if self.normalizer is None else self.normalizer.to_dict()


def _cross_entropy(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, class_weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy; 0 of an empty batch, as the last of a process may be. Outliers' labels are all smoothing.

    The mean is over images, not over weights, so that what an image counts doesn't depend on the batch that it is in.
    """
    if len(labels) == 0:
        return logits.float().sum()
    scores = logits.float().log_softmax(dim=1)
    smoothed = torch.where(labels == OUTLIER, 1.0, smoothing)
    own = scores.gather(1, labels.clamp_min(0)[:, None])[:, 0]
    likelihoods = (1 - smoothed) * own + smoothed * scores.mean(dim=1)
    if class_weights is not None:
        likelihoods = likelihoods * torch.where(labels == OUTLIER, 1.0, class_weights[labels.clamp_min(0)])
    return -likelihoods.mean()
