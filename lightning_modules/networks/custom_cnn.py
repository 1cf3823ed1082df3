"""Our own network: small, fast on a CPU, more accurate than the reference."""

from pathlib import Path

from torch import Tensor, nn

from datamodules.errors import UserError
from lightning_modules.classifier import Classifier
from lightning_modules.networks.blocks import conv_block
from lightning_modules.preprocessing import Preprocessing
from lightning_modules.recipe import Recipe
from lightning_modules.weights import read_start


class CustomCNN(Classifier):
    """Five convolutions with batch normalisation, a global average, one dense layer; 134 thousand weights.

    The first convolution has stride 2, since work at full resolution on few channels is what costs most on a CPU;
    pooling comes before normalisation and ReLU, which then have a quarter of the work; no convolution is padded,
    since the border of a digit is empty.

    Args:
        class_names: Names of the classes, in the order of the outputs.
        in_channels: Channels of the data: 1 for grey, 3 for colour.
        image_size: Side of the square images that the datamodule yields, in pixels.
        input_size: Side that the network resizes them to, in pixels, at least 23.
        width: Channels of the first convolution; the others are 1.5, 2, 4 and 4 times as wide.
        weights: What to start from: a checkpoint or an export of such a network; null is nothing.
        recipe: How it is trained.

    Raises:
        UserError: An argument is out of its range.
    """

    def __init__(
        self,
        class_names: list[str],
        in_channels: int,
        image_size: int,
        input_size: int = 28,
        width: int = 32,
        weights: str | None = None,
        recipe: Recipe = Recipe(learning_rate=0.2, weight_decay=1e-3, label_smoothing=0.1, optimizer="sgd"),
    ) -> None:
        super().__init__(class_names=class_names, in_channels=in_channels, image_size=image_size, recipe=recipe)
        if input_size < 23:
            raise UserError(f"input_size must be at least 23 pixels, got {input_size}")
        if width < 2:
            raise UserError(f"width must be at least 2, got {width}")
        self.preprocessing = Preprocessing(in_channels, input_size, (0.5,), (0.5,))
        self.features = nn.Sequential(  # side of the maps at input_size 28:
            conv_block(in_channels, width, 5, stride=2),  # 12
            conv_block(width, 3 * width // 2, 3),  # 10
            conv_block(3 * width // 2, 2 * width, 3, pool=2),  # 4
            conv_block(2 * width, 4 * width, 3),  # 2
            conv_block(4 * width, 4 * width, 1),  # 2
        )
        self.head = nn.Linear(4 * width, len(class_names))
        if weights is not None:
            self.start_from(read_start(Path(weights)), weights)

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> (B, 4 * width, h, w), float."""
        maps: Tensor = self.features(self.preprocessing(images))
        return maps

    def forward_pooled(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> (B, 4 * width), float."""
        return self.forward_features(images).mean(dim=(2, 3))

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, 4 * width) -> (B, K), float: class scores (logits)."""
        scores: Tensor = self.head(features)
        return scores
