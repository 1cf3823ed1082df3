"""The same picture gets the same answer from every command: all bring it into the training images' form alike."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.images import read_image
from lightning_modules.checkpoint import load_classifier
from lightning_modules.cli import main
from lightning_modules.commands import export
from retrieval.app.recognition import Recogniser
from retrieval.cli import main as search
from retrieval.encoders.registry import build_encoder
from retrieval.query import Example, read_example
from retrieval.stores.location import parse_location
from tests.conftest import draw_digit
from tests.test_cli import best, run


@pytest.fixture
def pictures(workplace):
    """Digits of the kind that is trained on, in blue ink on a large light paper, away from its middle."""
    (workplace / "pictures").mkdir()
    for digit in range(3):
        ink = np.asarray(draw_digit(digit, 7).convert("L").resize((120, 120), Image.Resampling.BICUBIC)) / 255
        paper = np.zeros((300, 400))
        paper[150:270, 30:150] = ink
        colours = 235 - paper[..., None] * (235 - np.array([40, 60, 170]))
        Image.fromarray(colours.round().astype(np.uint8)).save(workplace / "pictures" / f"{digit}.png")
    photograph = Image.open(workplace / "pictures" / "2.png").resize((3600, 2700), Image.Resampling.BICUBIC)
    photograph.save(workplace / "pictures" / "3.jpg", quality=95)
    return workplace / "pictures"


def predicted(path):
    with path.open(newline="") as file:
        return [(row["label"], row["probability"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_all_commands_see_the_digit_as_the_network_was_trained(trained, pictures, capsys, workplace):
    checkpoint = Path(best(trained))
    normalizer = load_classifier(checkpoint).normalizer
    assert normalizer is not None
    recogniser = Recogniser(checkpoint)
    run(capsys, "predict", "--ckpt_path", str(checkpoint), "--images", "pictures")
    rows = predicted(workplace / "predictions.csv")
    paths = sorted(pictures.iterdir())
    answers = [recogniser.recognise(recogniser.read(path)) for path in paths]
    assert rows == [(answer.best, f"{answer.probabilities[answer.best]:.6f}") for answer in answers]
    for digit, answer in zip((0, 1, 2, 2), answers, strict=True):
        original = np.asarray(draw_digit(digit, 7).convert("L"), dtype=float)
        places = [(down, right) for down in range(-4, 5) for right in range(-4, 5)]  # it is centred, too
        shifted = [np.roll(answer.seen[0].astype(float), place, (0, 1)) for place in places]
        assert max(np.corrcoef(original.ravel(), image.ravel())[0, 1] for image in shifted) > 0.8

    assert export.main([str(trained), "exported"]) == 0
    assert json.loads(Path("exported/config.json").read_text())["normalizer"] == normalizer.to_dict()
    run(capsys, "predict", "--ckpt_path", "exported", "--images", "pictures")
    exported = Recogniser(Path("exported"))
    again = [exported.recognise(exported.read(path)) for path in paths]
    assert predicted(workplace / "predictions.csv") == [(a.best, f"{a.probabilities[a.best]:.6f}") for a in again]
    assert all(np.array_equal(one.seen, two.seen) for one, two in zip(answers, again, strict=True))


def test_retrieval_sees_what_the_network_sees(trained, pictures, workplace):
    checkpoint = best(trained)
    encoder, recogniser = build_encoder(checkpoint), Recogniser(Path(checkpoint))
    for path in pictures.iterdir():
        pixels, _ = read_example(Example(path), encoder)
        assert np.array_equal(pixels, recogniser.recognise(recogniser.read(path)).seen)
        assert encoder.seen(recogniser.read(path)).size == (20, 20)
    usual = draw_digit(0, 3).convert("RGB")
    assert encoder.seen(usual) is usual
    options = ["--encoder", checkpoint, "--figure", "found.png", "--explain"]
    assert search(["query", "pictures/0.png", "--database", "pictures", *options]) == 0
    assert (workplace / "found.png").stat().st_size > 0
    with parse_location(workplace / "pictures/.digitdoodle.sqlite").open() as store:
        record = store.records()["3.jpg"]
    assert (record.width, record.height) == (3600, 2700)  # though less of it is decoded


def test_pictures_are_taken_as_they_are_if_that_is_asked_for(trained, pictures, caplog, workplace):
    assert main(["predict", "--ckpt_path", best(trained), "--images", "pictures", "--normalize", "none"]) == 0
    assert "the digit on each would be drawn as those of the training images are: light on dark, " in caplog.text
    model = load_classifier(Path(best(trained)))
    size = (model.image_size,) * 2
    plain = [
        np.asarray(read_image(path, 3).convert("L").resize(size, Image.Resampling.BILINEAR))
        for path in sorted(pictures.iterdir())
    ]
    with torch.inference_mode():
        expected = model.probabilities(torch.from_numpy(np.stack(plain)[:, None])).amax(dim=1)
    assert [float(probability) for _, probability in predicted(workplace / "predictions.csv")] == pytest.approx(
        expected.tolist(), abs=2e-6
    )


def test_photographs_are_not_touched(workplace, capsys, photos):
    run(capsys, "fit", "--data", "ImageFolderDataModule", "--data.root", str(photos), "--trainer.max_epochs", "1")
    assert load_classifier(Path("runs/custom_cnn/version_0/checkpoints/best.ckpt")).normalizer is None
