"""A network learns from pictures that it got wrong, and forgets nothing."""

import csv
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.errors import UserError
from datamodules.splits import read_rows
from lightning_modules.checkpoint import load_classifier, read_checkpoint
from lightning_modules.run import Run
from retrieval.app.corrections import Corrections
from tests.conftest import REPOSITORY, draw_digit, start, wait_for
from tests.test_cli import assert_same_weights, fail, run

ADAPT = ["fit", "--config", str(REPOSITORY / "configs" / "adapt.yaml"), "--data.root", "corrections"]
BASE = "runs/custom_cnn/version_0/checkpoints/best.ckpt"


def draw_two(seed: int) -> Image.Image:
    """A 2 as nobody else writes it: with its lower stroke alone."""
    image = np.asarray(draw_digit(2, seed)).copy()
    image[:10] //= 8
    return Image.fromarray(image)


@pytest.fixture
def corrections(trained, workplace):
    """Eight such pictures in the class folder of the 2s, and twelve others beside them."""
    for folder, seeds in (("corrections/2_digits", range(8)), ("others/2_digits", range(8, 20))):
        (workplace / folder).mkdir(parents=True)
        for seed in seeds:
            draw_two(seed).save(workplace / folder / f"{seed}.png")
    return workplace / "corrections"


def answers(checkpoint: Path, images: str) -> list[str]:
    run("predict", "--ckpt_path", str(checkpoint), "--images", images)
    with Path("predictions.csv").open() as file:
        return [row["label"] for row in csv.DictReader(file)]


def test_it_learns_what_it_is_corrected_in_and_keeps_the_rest(corrections, capsys):
    base = load_classifier(Path(BASE))
    wrong = sum(label != "2_digits" for label in answers(Path(BASE), "others"))
    assert wrong >= 6
    run(*ADAPT, "--ckpt_path", BASE)
    best = Path("runs/adapt/version_0/checkpoints/best.ckpt")
    assert sum(label != "2_digits" for label in answers(best, "others")) <= wrong / 2
    adapted = load_classifier(best)
    assert adapted.class_names == base.class_names
    assert adapted.normalizer == base.normalizer
    before, after = (Run(folder).summary for folder in (Path("runs/custom_cnn/version_0"), Path("runs/adapt/version_0")))
    assert after["val_accuracy"] >= before["val_accuracy"]
    assert after["best_epoch"] == 3
