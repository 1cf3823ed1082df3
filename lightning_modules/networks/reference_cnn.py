"""The reference work's network, to compare with."""

from pathlib import Path

from torch import Tensor, nn

from datamodules.errors import UserError
from lightning_modules.classifier import Classifier
from lightning_modules.preprocessing import Preprocessing
from lightning_modules.recipe import Recipe
from lightning_modules.weights import read_start


class ReferenceCNN(Classifier):
    """Two valid 5×5 convolutions (64 and 32 channels) with ReLU and max-pooling, dense 128, dense classes.

    Weights start as Keras starts them: Glorot-uniform (Glorot & Bengio 2010,
    https://proceedings.mlr.press/v9/glorot10a.html), biases at zero.

    Args:
        class_names: Names of the classes, in the order of the outputs.
        in_channels: Channels of the data: 1 for grey, 3 for colour.
        image_size: Side of the square images, in pixels; the dense layer's size follows from it.
        weights: What to start from: a checkpoint or an export of such a network; null is nothing.
        recipe: How it is trained.

    Raises:
        UserError: The images are smaller than 16 pixels, or an argument is out of its range.
    """

    def __init__(
        self,
        class_names: list[str],
        in_channels: int,
        image_size: int,
        weights: str | None = None,
        recipe: Recipe = Recipe(schedule="constant"),
    ) -> None:
        super().__init__(class_names=class_names, in_channels=in_channels, image_size=image_size, recipe=recipe)
        if image_size < 16:
            raise UserError(f"ReferenceCNN needs images of at least 16 pixels, got image_size {image_size}")
        pooled = ((image_size - 4) // 2 - 4) // 2
        # The reference rescales pixels for MobileNetV2 only; this network sees 0 to 255, and learns faster for it.
        self.preprocessing = Preprocessing(in_channels, image_size, (0.0,), (1 / 255,))
        # ReLU before or after max-pooling is the same; after it has a quarter of the work.
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, 64, 5),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Conv2d(64, 32, 5),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(32 * pooled * pooled, 128),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(128, len(class_names))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if weights is not None:
            self.start_from(read_start(Path(weights)), weights)

    def forward_pooled(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> (B, 128), float."""
        features: Tensor = self.features(self.preprocessing(images))
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, 128) -> (B, K), float: class scores (logits)."""
        scores: Tensor = self.head(features)
        return scores
