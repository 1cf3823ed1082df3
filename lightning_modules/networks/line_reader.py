"""Reads the text of a line, without cutting it into signs."""

import math
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torchmetrics import MetricCollection

from datamodules.dataset import Batch
from datamodules.errors import UserError
from datamodules.lines import HEIGHT
from datamodules.strings import StringsDataModule
from lightning_modules.ctc import (
    ReadingCalibration,
    SignAccuracy,
    TextAccuracy,
    alignment_losses,
    ctc_losses,
    read_best_paths,
)
from lightning_modules.hardware import full_precision
from lightning_modules.network import Network
from lightning_modules.networks.blocks import conv_block
from lightning_modules.recipe import Recipe
from lightning_modules.weights import read_start


class LineReader(Network):
    """A convolutional reader: a line becomes columns of four pixels' width, each of which says which sign it is in.

    What is read follows by connectionist temporal classification; signs need not be cut apart. As in ``CustomCNN``, the
    first convolution has stride 2 and pooling comes before normalisation.

    It is an ensemble: what is read is the mean of several such networks' probabilities, which is right more often on
    unseen hands than one network's (deep ensembles, Lakshminarayanan et al. 2017, https://arxiv.org/abs/1612.01474).
    Unlike there, each learns from its own part of every batch, so that all together train as fast as one. At the
    defaults they have 0.71 million weights.

    Args:
        class_names: The signs that it reads, in the order of the outputs, which the blank comes before.
        in_channels: Channels of the data; colour is not read.
        image_size: Height of the lines, in pixels; the network is made for 32.
        width: Channels of a network's first convolution; the others are 2, 4, 4 and 6 times as wide.
        members: How many networks are averaged.
        weights: What to start from: a checkpoint or an export of such a network; null is nothing.
        recipe: How it is trained.

    Raises:
        UserError: An argument is out of its range.
    """

    calibration: ReadingCalibration

    def __init__(
        self,
        class_names: list[str],
        in_channels: int,
        image_size: int,
        width: int = 16,
        members: int = 3,
        weights: str | None = None,
        recipe: Recipe = Recipe(learning_rate=1e-2, weight_decay=0.01, optimizer="muon"),
    ) -> None:
        super().__init__(class_names=class_names, in_channels=in_channels, image_size=image_size, recipe=recipe)
        if in_channels != 1 or image_size != HEIGHT:
            raise UserError(
                f"a LineReader takes grey lines of {HEIGHT} pixels, got {image_size} and {in_channels} channels"
            )
        if recipe.class_weights is not None:
            raise UserError("class_weights are for classifiers: a LineReader has none")
        if width < 2:
            raise UserError(f"width must be at least 2, got {width}")
        if members < 1:
            raise UserError(f"members must be at least 1, got {members}")
        self.features = nn.ModuleList(_build_features(width) for _ in range(members))
        self.head = nn.ModuleList(nn.Conv2d(6 * width, len(class_names) + 1, 1) for _ in range(members))
        self.calibration = ReadingCalibration()
        self.train_metrics = MetricCollection({"accuracy": TextAccuracy(read_best_paths)}, prefix="train_")
        self.val_metrics = MetricCollection(
            {"accuracy": TextAccuracy(), "sign_accuracy": SignAccuracy()}, prefix="val_"
        )
        self.test_metrics = self.val_metrics.clone(prefix="test_")
        if weights is not None:
            state = read_start(Path(weights))
            found = sum(re.fullmatch(r"head\.\d+\.weight", name) is not None for name in state)
            if found not in (0, members):
                raise UserError(f"model.members must be {found}, as many networks as {weights} has, got {members}")
            self.start_from(state, weights)

    def check_data(self, data: LightningDataModule) -> None:
        """Take lines with their texts, no images of one sign each.

        Raises:
            UserError: The datamodule gives something else, or batches of fewer lines than there are networks.
        """
        if not isinstance(data, StringsDataModule):
            raise UserError(f"a LineReader takes lines, as StringsDataModule has them, not {type(data).__name__}")
        if data.batch_size < len(self.head):
            raise UserError(
                f"data.batch_size must be at least {len(self.head)}, so that each of the reader's networks learns from "
                f"a line, got {data.batch_size}"
            )

    def forward(self, images: Tensor) -> Tensor:
        """Read lines.

        Args:
            images: (B, 1, 32, W), uint8, or float in [0, 1]: light ink on black.

        Returns:
            (B, T, K + 1), float: scores of the blank and of each sign, for each of the T = W / 4 columns. In training
            mode each line's are those of one network; otherwise they are the logarithms of all networks' mean
            probabilities.
        """
        pixels = images.float() if images.is_floating_point() else images.float() / 255
        # Of the network's precision, which is not float32 under --trainer.precision bf16-true.
        pixels = ((pixels - 0.15) / 0.25).to(next(self.parameters()).dtype)
        if self.training:
            parts = zip(self.features, self.head, pixels.tensor_split(len(self.head)), strict=True)
            scores = torch.cat([head(features(part)) for features, head, part in parts if len(part) > 0])
            return scores[:, :, 0].transpose(1, 2)
        members = zip(self.features, self.head, strict=True)
        scores = torch.stack([head(features(pixels))[:, :, 0] for features, head in members])
        mean = scores.float().log_softmax(dim=2).logsumexp(dim=0) - math.log(len(scores))
        return mean.transpose(1, 2)

    def probabilities(self, images: Tensor) -> Tensor:
        """(B, 1, 32, W), uint8 -> (B, T, K + 1), float32: probabilities of the blank and of each sign, by column."""
        outputs: Tensor = self(images)
        return (outputs.float() / self.calibration.temperature).softmax(dim=2)

    @torch.inference_mode()
    def read_columns(self, line: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(32, W), uint8 -> (T, K + 1), float32: the probabilities of one line, in full precision."""
        with full_precision(self.device):
            found: Tensor = self.probabilities(torch.from_numpy(line.copy())[None, None].to(self.device))
        columns: npt.NDArray[np.float32] = found[0].cpu().numpy()
        return columns

    def judged(self, outputs: Tensor) -> Tensor:
        """Scores by which texts are as likely as ``probabilities`` says: (B, T, K + 1)."""
        return outputs.float() / self.calibration.temperature

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """How unlikely the right texts are: the mean over (B, T, K + 1) outputs and (B, L) labels."""
        return ctc_losses(outputs, labels).mean() if len(labels) else outputs.sum()

    def training_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The loss, and of composed lines how well each sign is read where it stands."""
        loss = self.loss(outputs, batch.labels)
        if batch.middles is None or len(batch.labels) == 0:
            return loss
        return loss + alignment_losses(outputs, batch.labels, batch.middles).mean()


def _build_features(width: int) -> nn.Sequential:
    """What one of the networks sees in each column: (B, 1, 32, W) -> (B, 6 · width, 1, W / 4)."""
    return nn.Sequential(  # height of the maps:
        conv_block(1, width, 5, stride=2, padding=2),  # 16
        conv_block(width, 2 * width, 3, padding=1, pool=2),  # 8
        _Residual(2 * width, (3, 3)),
        conv_block(2 * width, 4 * width, 3, padding=1, pool=(2, 1)),  # 4
        _Residual(4 * width, (3, 3)),
        conv_block(4 * width, 4 * width, 3, padding=1, pool=(2, 1)),  # 2
        conv_block(4 * width, 6 * width, (2, 3), padding=(0, 1)),  # 1
        nn.Dropout(0.1),
        _Residual(6 * width, (1, 5)),  # what five neighbouring columns say
        _Residual(6 * width, (1, 5)),
    )


class _Residual(nn.Module):
    """A block whose outcome is added to what it is given (He et al. 2016, https://doi.org/10.1109/CVPR.2016.90)."""

    def __init__(self, channels: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.layers = conv_block(channels, channels, kernel, padding=(kernel[0] // 2, kernel[1] // 2))

    def forward(self, maps: Tensor) -> Tensor:
        """(B, D, H, T) -> (B, D, H, T)."""
        more: Tensor = self.layers(maps)
        return maps + more
