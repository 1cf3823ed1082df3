"""timm's MobileNetV2 with its ImageNet weights, fine-tuned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from datamodules.errors import UserError
from lightning_modules.classifier import Classifier
from lightning_modules.preprocessing import Preprocessing
from lightning_modules.recipe import Recipe
from lightning_modules.weights import read_weights

PART = 32  # images


class MobileNetV2(Classifier):
    """MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381) and a small head.

    The head is pool → dense → ReLU → dropout → classes. While the backbone is frozen it has no gradients, keeps no
    graph, and its batch normalisation neither adapts nor uses the batch's statistics.

    Args:
        class_names: Names of the classes, in the order of the outputs.
        in_channels: Channels of the data: 1 for grey, 3 for colour; the network takes 3.
        image_size: Side of the square images that the datamodule yields, in pixels.
        variant: Name of the network in timm, ``mobilenetv2_…``.
        weights: ``pretrained`` downloads timm's weights, or takes them from its cache; else a file (``.pth`` or
            ``.safetensors``), or null to start from nothing.
        input_size: Side that the network resizes images to, in pixels; null is what it was trained with.
        hidden: Width of the head's dense layer.
        dropout: Share of its outputs that is dropped in training, in [0, 1).
        unfreeze_at: Epoch, from 0, at which the backbone starts to learn; null never.
        recipe: How it is trained.
        backbone_learning_rate: Peak learning rate of the backbone.

    Raises:
        UserError: timm has no such variant, the weights can't be had or don't fit, or an argument is out of range.
    """

    def __init__(
        self,
        class_names: list[str],
        in_channels: int,
        image_size: int,
        variant: str = "mobilenetv2_100",
        weights: str | None = "pretrained",
        input_size: int | None = None,
        hidden: int = 128,
        dropout: float = 0.5,
        unfreeze_at: int | None = 0,
        recipe: Recipe = Recipe(),
        backbone_learning_rate: float = 1e-3,
    ) -> None:
        super().__init__(class_names=class_names, in_channels=in_channels, image_size=image_size, recipe=recipe)
        if not 0 <= dropout < 1:
            raise UserError(f"dropout must lie in [0, 1), got {dropout}")
        if hidden < 1:
            raise UserError(f"hidden must be at least 1, got {hidden}")
        if input_size is not None and input_size < 32:
            raise UserError(f"input_size must be at least 32 pixels, got {input_size}")
        if backbone_learning_rate <= 0:
            raise UserError(f"backbone_learning_rate must be above 0, got {backbone_learning_rate}")
        self.unfreeze_at = unfreeze_at
        self.backbone_learning_rate = backbone_learning_rate
        self.backbone = build_backbone(variant, weights)
        trained_with = self.backbone.pretrained_cfg
        self.preprocessing = Preprocessing(
            3,
            input_size or trained_with["input_size"][-1],
            trained_with["mean"],
            trained_with["std"],
            trained_with["interpolation"],
        )
        self.head = nn.Sequential(
            nn.Linear(self.backbone.num_features, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, len(class_names)),
        )
        self.frozen = unfreeze_at != 0
        if unfreeze_at is None:
            self.backbone.requires_grad_(False)

    def setup(self, stage: str) -> None:
        """Lay the weights out for the device at hand.

        Raises:
            UserError: Several processes would wait for gradients that a frozen backbone doesn't have yet.
        """
        super().setup(stage)
        found = getattr(self.trainer.strategy, "_ddp_kwargs", {"find_unused_parameters": True})
        if stage == "fit" and self.unfreeze_at and not found.get("find_unused_parameters"):
            raise UserError(
                f"unfreeze_at {self.unfreeze_at} with several processes needs "
                "--trainer.strategy ddp_find_unused_parameters_true"
            )

    def train(self, mode: bool = True) -> "MobileNetV2":
        """Switch to training; a frozen backbone stays in eval mode, so that its batch statistics don't move."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def on_train_start(self) -> None:
        """Unfreeze the backbone in a run that is resumed in the middle of an epoch."""
        super().on_train_start()
        self._unfreeze_if_due()

    def on_train_epoch_start(self) -> None:
        """Unfreeze the backbone when its epoch has come."""
        super().on_train_epoch_start()
        self._unfreeze_if_due()

    def _unfreeze_if_due(self) -> None:
        self.frozen = self.unfreeze_at is None or self.current_epoch < self.unfreeze_at
        self.train()

    def forward_maps(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> (B, D, h, w), float: what the features are the average of."""
        maps: Tensor = self.backbone.forward_features(self.preprocessing(images))
        return maps

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> (B, D), float: the pooled features, 1280 of most variants."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.backbone.training or images.device.type != "cpu" or torch.compiler.is_compiling():
                features: Tensor = self.backbone(self.preprocessing(images))
                return features
            # No image depends on another: in parts a large batch takes half the time and a quarter of the memory.
            return torch.cat([self.backbone(self.preprocessing(part)) for part in torch.split(images, PART)])

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, K), float: class scores (logits)."""
        scores: Tensor = self.head(features)
        return scores

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of head and backbone, both from the start, so that a run resumes in either phase."""
        groups = []
        for module, rate in ((self.head, self.recipe.learning_rate), (self.backbone, self.backbone_learning_rate)):
            for decays in (True, False):
                groups.append(
                    {
                        "params": [p for p in module.parameters() if (p.ndim > 1) == decays],
                        "lr": rate,
                        "weight_decay": self.recipe.weight_decay if decays else 0.0,
                    }
                )
        return groups

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note that the weights to start from are those in the checkpoint."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "weights": None}


def build_backbone(variant: str, weights: str | None) -> Any:
    """Make timm's network without its classifier, with the weights asked for.

    Raises:
        UserError: timm has no such variant, or the weights can't be had or don't fit.
    """
    if variant not in timm.list_models("mobilenetv2_*"):
        raise UserError(f"timm has no variant {variant}; it has {', '.join(timm.list_models('mobilenetv2_*'))}")
    if weights != "pretrained":
        backbone = timm.create_model(variant, num_classes=0)
        if weights is not None:
            load_backbone(backbone, read_weights(Path(weights)), variant, weights)
        return backbone
    try:
        return timm.create_model(variant, pretrained=True, num_classes=0)
    # timm, the hub's client and its transport raise all kinds of errors where there is no network.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the pretrained weights of {variant} can't be had ({reason}); name a file with --model.weights PATH, "
            "a mirror or a cache with the variables HF_ENDPOINT or HF_HOME, or start from nothing with "
            "--model.weights null"
        ) from error


def load_backbone(backbone: nn.Module, state: Mapping[str, Tensor], variant: str, path: str) -> None:
    """Load weights strictly, but for the classifier, which is not part of the backbone.

    Raises:
        UserError: They are those of another network.
    """
    try:
        backbone.load_state_dict({name: value for name, value in state.items() if not name.startswith("classifier.")})
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[1].strip()[:200]
        raise UserError(f"{path}: no weights of {variant}: {reason}") from error
