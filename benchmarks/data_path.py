"""The data path alone: decode, cache, fetch, augment; and its share of a training step."""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.data import digit_folder
from benchmarks.harness import Measurement, Options, has, in_turn, seconds_of
from datamodules import Augmentation, ImageFolderDataModule
from lightning_modules.hardware import keep_freed_memory
from lightning_modules.networks.custom_cnn import CustomCNN

BATCH = 64


def run(options: Options) -> list[Measurement]:
    """Images per second from a folder to augmented batches, and what a step pays for it."""
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as every training has it; for all contestants alike
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        folder = digit_folder(options, scratch)
        results = [_epochs(folder, scratch, options), _augmentation(folder, scratch, options)]
        results += [_share(folder, scratch, options, size) for size in (28, 100)]
    return results


def _loaded(folder: Path, scratch: Path, size: int = 100) -> ImageFolderDataModule:
    data = ImageFolderDataModule(str(folder), image_size=size, batch_size=BATCH, cache_dir=str(scratch / "cache"))
    data.setup("fit")
    return data


def _epochs(folder: Path, scratch: Path, options: Options) -> Measurement:
    """An epoch of augmented batches: from our cache, and decoded anew by worker processes."""

    def from_cache() -> float:
        data = _loaded(folder, scratch)
        start = time.perf_counter()
        count = sum(len(data.augment(batch, 0).images) for batch in data.train_dataloader())
        return count / (time.perf_counter() - start)

    def image_by_image() -> float:
        steps = [
            transforms.Grayscale(),
            transforms.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1)),
            transforms.ColorJitter(contrast=0.1),
            transforms.Resize((100, 100)),
            transforms.ToTensor(),
        ]
        dataset = ImageFolder(folder, transforms.Compose(steps))
        loader: Any = DataLoader(dataset, BATCH, shuffle=True, num_workers=options.threads, persistent_workers=True)
        sum(len(images) for images, _ in loader)  # workers start
        start = time.perf_counter()
        count = sum(len(images) for images, _ in loader)
        return count / (time.perf_counter() - start)

    contestants = {"ours": from_cache, "ImageFolder, worker processes": image_by_image}
    return in_turn(Measurement("an epoch of augmented batches", "images/s"), contestants, options.repeats)


def _augmentation(folder: Path, scratch: Path, options: Options) -> Measurement:
    """Rotation, zoom, translation and contrast of one batch that is in memory."""
    data = _loaded(folder, scratch)
    batch = next(iter(data.train_dataloader()))
    augmentation = Augmentation()

    def rate(work: Any) -> float:
        return len(batch.images) / seconds_of(work, 3 if options.smoke else 20)

    by_image = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1)),
            transforms.ColorJitter(contrast=0.1),
            transforms.ToTensor(),
        ]
    )
    contestants = {
        "ours": lambda: rate(lambda: augmentation(batch.images, augmentation.draw(0, 0, len(batch.images)))),
        "torchvision, image by image": lambda: rate(lambda: torch.stack([by_image(image) for image in batch.images])),
    }
    if has("kornia"):
        import kornia.augmentation as kornia

        peer = torch.nn.Sequential(
            kornia.RandomAffine(10.0, (0.05, 0.05), (0.9, 1.1), p=1.0), kornia.RandomContrast((0.9, 1.1), p=1.0)
        )
        contestants["kornia, whole batches"] = lambda: rate(lambda: peer(batch.images.float() / 255))
    name = f"augmentation of a batch of {BATCH} images of 100×100"
    return in_turn(Measurement(name, "images/s"), contestants, options.repeats)


def _share(folder: Path, scratch: Path, options: Options, size: int) -> Measurement:
    """Fetching and augmenting, and of that the resampling alone, as a share of a training step of CustomCNN."""
    data = _loaded(folder, scratch, size)
    model = CustomCNN(data.class_names, data.in_channels, data.image_size)
    model.use_memory_format(torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameter_groups(), momentum=0.9, nesterov=True, fused=True)
    assert data.train_set is not None
    rows = list(range(min(BATCH, len(data.train_set))))

    def fetch() -> Any:
        assert data.train_set is not None
        return data.augment(data.train_set.batch(rows), 0)

    pixels = fetch().images
    grid = F.affine_grid(torch.eye(2, 3).expand(len(rows), 2, 3), list(pixels.shape), align_corners=False)

    def resample() -> torch.Tensor:
        return F.grid_sample(pixels, grid, align_corners=False)

    def step() -> None:
        batch = fetch()
        model.loss(model(batch.images), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    turns = 3 if options.smoke else 30
    measurement = Measurement(f"share of the data path in a step of CustomCNN, batch {BATCH}, {size} pixels", "%")
    contestants = {
        name: lambda part=part: 100 * seconds_of(part, turns) / seconds_of(step, turns)
        for name, part in {"ours": fetch, "grid_sample alone": resample}.items()
    }
    return in_turn(measurement, contestants, options.repeats)
