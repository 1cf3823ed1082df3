"""Any network of timm with its pretrained weights, fine-tuned."""

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from tqdm import tqdm

from datamodules.base import ImageDataModule
from datamodules.dataset import Batch, BatchDataset
from datamodules.errors import UserError
from datamodules.image_folder import ImageFolderDataModule
from lightning_modules.backbone import averaged_maps, create_backbone, load_backbone
from lightning_modules.classifier import Classifier
from lightning_modules.hardware import full_precision
from lightning_modules.preprocessing import Preprocessing
from lightning_modules.recipe import Recipe
from lightning_modules.weights import read_start

PART = 32  # images


class TimmClassifier(Classifier):
    """A network of timm (https://huggingface.co/docs/timm) and a small head.

    Size, mean, standard deviation and interpolation of its input are those that its weights were trained with. The head
    is dense → ReLU → dropout → classes on the pooled features. While the backbone is frozen it has no gradients, keeps
    no graph, and its batch normalisation neither adapts nor uses the batch's statistics. One that stays frozen sees an
    image that isn't augmented only once a run: its features are kept, in full precision.

    Args:
        class_names: Names of the classes, in the order of the outputs.
        in_channels: Channels of the data: 1 for grey, 3 for colour; the network takes 3.
        image_size: Side of the square images that the datamodule yields, in pixels.
        variant: Name of the network in timm, with or without the tag of its weights.
        weights: ``pretrained`` downloads timm's weights, or takes them from its cache; else a file with a state dict of
            timm's, a checkpoint or an export of this class, or null to start from nothing.
        input_size: Side that the network resizes images to, in pixels; null is what it was trained with.
        hidden: Width of the head's dense layer.
        dropout: Share of its outputs that is dropped in training, in [0, 1).
        unfreeze_at: Epoch, from 0, at which the backbone starts to learn; null never.
        recipe: How it is trained.
        backbone_learning_rate: Peak learning rate of the backbone.

    Raises:
        UserError: timm has no such variant, the weights aren't available or don't fit, or an argument is out of range.
    """

    family = "*"  # pattern of the variants that are allowed

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
        self.backbone = build_backbone(self.family, variant, weights, input_size)
        trained_with = self.backbone.pretrained_cfg
        self.preprocessing = Preprocessing(
            3,
            input_size or trained_with["input_size"][-1],
            trained_with["mean"],
            trained_with["std"],
            "bilinear" if trained_with["interpolation"] == "bilinear" else "bicubic",
        )
        self.head = nn.Sequential(
            nn.Linear(getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, len(class_names)),
        )
        self.frozen = unfreeze_at != 0
        self._features: dict[str, Tensor] = {}  # of the subsets whose images a frozen backbone sees only once
        if weights not in (None, "pretrained"):
            state = read_start(Path(weights))
            if any(name.startswith("backbone.") for name in state):
                self.start_from(state, weights)
            else:
                load_backbone(self.backbone, state, variant, weights)
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

    @property
    def reads_photographs(self) -> bool:
        """Whether images are as large as the weights were trained on."""
        return bool(self.preprocessing.size >= self.backbone.pretrained_cfg["input_size"][-1])

    def on_fit_start(self) -> None:
        """As every classifier; and say so where images are enlarged that were larger before they were read."""
        self._features.clear()  # those of a fit that failed
        super().on_fit_start()
        data, wanted = getattr(self.trainer, "datamodule", None), self.preprocessing.size
        if not isinstance(data, ImageFolderDataModule) or data.image_size >= wanted:
            return
        if any(min(image.size) > data.image_size for image in data.first_images):
            rank_zero_info(
                f"Images are made smaller, to {data.image_size} pixels, and then enlarged to the {wanted} of the "
                f"network: --data.image_size {wanted} keeps more of what they show."
            )

    def train(self, mode: bool = True) -> "TimmClassifier":
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

    def forward_features(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> (B, D, h, w), float: maps that the pooled features average.

        Raises:
            UserError: The pooled features of this network are not such an average.
        """
        maps = averaged_maps(self.backbone, self.preprocessing(images))
        return super().forward_features(images) if maps is None else maps

    def forward_pooled(self, images: Tensor) -> Tensor:
        """(B, C, H, W), uint8 or float in [0, 1] -> (B, D), float: the pooled features, 1280 of most variants."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            if self.backbone.training or images.device.type != "cpu" or torch.compiler.is_compiling():
                features: Tensor = self.backbone(self.preprocessing(images))
                return features
            # No image depends on another: in parts a large batch takes half the time and a quarter of the memory.
            return torch.cat([self.backbone(self.preprocessing(part)) for part in torch.split(images, PART)])

    def forward_batch(self, batch: Batch) -> Tensor:
        """What ``forward`` gives, from features that are kept where there are some."""
        dataset = self._seen_each_epoch()
        if dataset is None or batch.images.is_floating_point():  # they are augmented
            return super().forward_batch(batch)
        subset = "train" if self.trainer.training else "val"
        if subset not in self._features:
            self._features[subset] = self._pool(dataset)
        return self.forward_head(self._features[subset][batch.indices])

    def _seen_each_epoch(self) -> BatchDataset | None:
        """The images at hand, if a run of one process looks at all of them in each epoch with a frozen backbone."""
        trainer, data = self.trainer, getattr(self.trainer, "datamodule", None)
        fits = trainer.state.fn == TrainerFn.FITTING and trainer.world_size == 1
        if self.unfreeze_at is not None or not fits or not isinstance(data, ImageDataModule):
            return None
        loader: Any = trainer.train_dataloader if trainer.training else trainer.val_dataloaders
        (batches,) = [trainer.num_training_batches] if trainer.training else trainer.num_val_batches
        return loader.dataset if len(loader) == batches else None

    @torch.no_grad()
    def _pool(self, dataset: BatchDataset) -> Tensor:
        """(N, D), float32: the pooled features of all images; the same bits whatever the order of the batches."""
        parts = []
        progress = tqdm(total=len(dataset), desc="Computing features", unit="img", delay=1, leave=False)
        with progress, full_precision(self.device):
            for start in range(0, len(dataset), PART):
                images = dataset.batch(range(start, min(start + PART, len(dataset)))).images
                parts.append(self.forward_pooled(images.to(self.device)))
                progress.update(len(images))
        return torch.cat(parts).float()

    def on_fit_end(self) -> None:
        """Let the features go."""
        self._features.clear()

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


def build_backbone(family: str, variant: str, weights: str | None, input_size: int | None) -> Any:
    """Make timm's network without its classifier, with the weights asked for.

    Args:
        family: Pattern of the names that are allowed.
        variant: Name of the network in timm.
        weights: ``pretrained``, a file, or None.
        input_size: Side of its input in pixels, of which some networks must know; None is what it was trained with.

    Raises:
        UserError: timm has no such variant, or the weights aren't available or don't fit.
    """
    known = timm.list_models(family)
    if not timm.is_model(variant) or variant.partition(".")[0] not in known:
        names = known if family != "*" else difflib.get_close_matches(variant, known, n=5)
        raise UserError(f"timm has no variant {variant}; it has {', '.join(names) or 'others, see timm.list_models()'}")
    options: dict[str, Any] = {}
    trained_with = timm.get_pretrained_cfg(variant)
    if input_size is not None and trained_with is not None and trained_with.fixed_input_size:
        options["img_size"] = input_size
    return create_backbone(
        variant,
        weights == "pretrained",
        "name a file with --model.weights PATH, a mirror or a cache with the variables HF_ENDPOINT or HF_HOME, or "
        "start from nothing with --model.weights null",
        **options,
    )
