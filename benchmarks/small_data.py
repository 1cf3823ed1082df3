"""What is learnt from very few images: 16 a class of MNIST, scored by its official test images."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import MNIST

from benchmarks.data import mnist_root, mnist_test, write_draw
from benchmarks.harness import REPOSITORY, Measurement, Options, run_process, say
from lightning_modules.checkpoint import load_classifier
from lightning_modules.evaluation import evaluate

IMAGES = 16  # a class
DRAWS = 5
SETTINGS = (
    "--monitor=val_objective",
    "--trainer.max_epochs=100",
    "--early_stopping.patience=100",
    "--data.image_size=28",
    "--data.val_fraction=0.1",
    "--data.augmentation.elastic=0.06",
    "--data.augmentation.degrees=15",
    "--data.augmentation.scale=[0.8,1.2]",
    "--data.augmentation.translate=[0.1,0.1]",
)


def run(options: Options) -> list[Measurement]:
    """Train ``configs/custom_cnn.yaml`` from nothing on class folders of 16 images, by five draws of them."""
    root = mnist_root(options, "small")
    if root is None:
        return []
    torch.set_num_threads(options.threads)
    images = MNIST(str(root))
    test = mnist_test(root)
    accuracy = Measurement(f"{IMAGES} images a class of MNIST, {DRAWS} draws", "% of test images right", {"ours": []})
    seconds = Measurement("training on them, from start to end of the process", "s", {"ours": []})
    for draw in range(DRAWS):
        with tempfile.TemporaryDirectory() as scratch:
            folder = write_draw(images, draw, dict.fromkeys(range(10), IMAGES), Path(scratch) / "images")
            command = ["-m", "lightning_modules", "fit", "--config", str(REPOSITORY / "configs" / "custom_cnn.yaml")]
            where = ["--data=ImageFolderDataModule", f"--data.root={folder}", f"--trainer.default_root_dir={scratch}"]
            finished = run_process([*command, *where, *SETTINGS, "--name=few"], options.threads)
            model = load_classifier(Path(scratch) / "few" / "version_0" / "checkpoints" / "best.ckpt")
            found = evaluate(model, test, 500)
        accuracy.values["ours"].append(100 * found.accuracy)
        seconds.values["ours"].append(finished.seconds)
        say(f"draw {draw + 1}: {100 * found.accuracy:.2f} % in {finished.seconds:.1f} s")
    accuracy.note = f"mean {np.mean(accuracy.values['ours']):.2f}"
    return [accuracy, seconds]
