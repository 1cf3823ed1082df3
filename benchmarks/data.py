"""The images that the benchmarks work on."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from benchmarks.harness import Options, say

if TYPE_CHECKING:
    from torchvision.datasets import MNIST

    from datamodules.dataset import ImageDataset


def digit_folder(options: Options, scratch: Path) -> Path:
    """``hand_written_digits``; without it, or to smoke, scikit-learn's digits as class folders of PNGs."""
    if options.data is not None and not options.smoke:
        return options.data / "data" / "hand_written_digits"
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder = scratch / "digits"
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if label < 3 and (not options.smoke or number < 300):
            (folder / f"{label}_digits").mkdir(parents=True, exist_ok=True)
            small = Image.fromarray((image * 255 / 16).astype(np.uint8))
            small.resize((100, 100)).save(folder / f"{label}_digits" / f"{number}.png")
    return folder


def mnist_folders(root: Path, scratch: Path) -> tuple[Path, Path]:
    """MNIST's training and test images as most tools want them: two folders, with a folder of PNGs per class."""
    from torchvision.datasets import MNIST

    folders = scratch / "mnist" / "train", scratch / "mnist" / "test"
    for folder, train in zip(folders, (True, False), strict=True):
        for number, (image, label) in enumerate(MNIST(root, train=train)):
            (folder / f"{label}").mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{label}" / f"{number}.png")
    return folders


def mnist_root(options: Options, name: str) -> Path | None:
    """The folder above ``MNIST/raw``; None, with a word, where a benchmark has none or is only to show that it runs."""
    if options.data is None or options.smoke:
        say(f"{name}: needs MNIST in --data-root; left out")
        return None
    return options.data / "data"


def mnist_test(root: Path) -> "ImageDataset":
    """The official test images of MNIST."""
    from datamodules.dataset import ImageDataset
    from datamodules.mnist import MNISTDataModule

    collection = MNISTDataModule(str(root)).load_test()
    return ImageDataset(collection, np.arange(len(collection.labels)))


def write_draw(images: "MNIST", seed: int, counts: dict[int, int], folder: Path) -> Path:
    """Some of MNIST's images as PNGs in a folder a digit, as many of each as ``counts`` says."""
    generator = np.random.default_rng(seed)
    for digit, count in counts.items():
        (folder / str(digit)).mkdir(parents=True)
        for row in generator.permutation(np.flatnonzero(images.targets.numpy() == digit))[:count]:
            Image.fromarray(images.data[row].numpy()).save(folder / str(digit) / f"{row}.png")
    return folder


def photo_folder(options: Options, scratch: Path, count: int) -> Path:
    """A folder with the first photographs of the collection; without it, drawn ones of 384×256."""
    folder = scratch / f"photos{count}"
    folder.mkdir()
    if options.data is not None and not options.smoke:
        found = sorted((options.data / "data" / "photos" / "images_database").glob("*/*.jpg"))
        for path in found[:: max(len(found) // count, 1)][:count]:
            (folder / f"{path.parent.name}_{path.name}").write_bytes(path.read_bytes())
    else:
        for seed in range(count):
            spots = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)
            Image.fromarray(spots).resize((384, 256), Image.Resampling.BICUBIC).save(folder / f"{seed}.jpg")
    return folder
