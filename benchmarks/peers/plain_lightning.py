"""PyTorch Lightning as most people write it: ImageFolder, transforms image by image, worker processes."""

import argparse
import math

import timm
import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, Subset, random_split
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.clock import Clock


class PlainModule(LightningModule):
    """The reference's custom CNN, or timm's frozen MobileNetV2 with the reference's head."""

    def __init__(self, network: str, classes: int) -> None:
        super().__init__()
        if network == "cnn":
            self.model = nn.Sequential(
                nn.Conv2d(1, 64, 5),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(64, 32, 5),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(32 * 22 * 22, 128),
                nn.ReLU(),
                nn.Linear(128, classes),
            )
        else:
            backbone = timm.create_model("mobilenetv2_100", pretrained=False, num_classes=0)
            backbone.requires_grad_(False)
            self.model = nn.Sequential(
                backbone, nn.Linear(1280, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, classes)
            )

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        accuracy = (self.model(images).argmax(1) == labels).float().mean()
        self.log("val_accuracy", accuracy, batch_size=len(labels))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


def main() -> None:
    """Train and time."""
    parser = argparse.ArgumentParser()
    parser.add_argument("network", choices=("cnn", "mobilenetv2"))
    parser.add_argument("folder")
    parser.add_argument("--test-folder", help="validate on these images, not on a fifth of the others")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--until", type=float, default=math.inf)
    parser.add_argument("--seconds", type=float, default=math.inf)
    options = parser.parse_args()

    seed_everything(options.seed)
    size = 100 if options.network == "cnn" else 224
    channels = 1 if options.network == "cnn" else 3
    plain = [transforms.Grayscale(channels), transforms.Resize((size, size)), transforms.ToTensor()]
    augment = [
        transforms.RandomAffine(72, translate=(0.1, 0.1), scale=(0.9, 1.1)),
        transforms.ColorJitter(contrast=0.1),
    ]
    train_set = ImageFolder(options.folder, transforms.Compose([*plain[:1], *augment, *plain[1:]]))
    val_set = ImageFolder(options.test_folder or options.folder, transforms.Compose(plain))
    train, val = train_set, val_set
    if not options.test_folder:
        parts = random_split(range(len(train_set)), [0.8, 0.2], torch.Generator().manual_seed(42))
        train, val = (Subset(whole, part.indices) for whole, part in zip((train_set, val_set), parts, strict=True))
    workers = {"num_workers": 2, "persistent_workers": True, "batch_size": 256}
    trainer = Trainer(
        max_epochs=options.epochs,
        callbacks=[Clock(until=options.until, seconds=options.seconds)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(
        PlainModule(options.network, len(train_set.classes)),
        DataLoader(train, shuffle=True, **workers),
        DataLoader(val, **workers),
    )


if __name__ == "__main__":
    main()
