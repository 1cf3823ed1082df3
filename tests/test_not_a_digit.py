"""Confidence that can be believed, and pictures that show no digit; by the network that comes with the package."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from datamodules.dataset import OUTLIER
from datamodules.images import read_image
from lightning_modules.answers import refusal
from lightning_modules.calibration import Calibration, expected_calibration_error
from lightning_modules.checkpoint import load_classifier
from lightning_modules.commands import export
from lightning_modules.embedded import EMBEDDED
from lightning_modules.evaluation import evaluate
from lightning_modules.networks import CustomCNN
from lightning_modules.recipe import Recipe
from lightning_modules.run import Run
from retrieval.app.recognition import Recogniser
from retrieval.encoders.registry import build_encoder, describe_encoder, rebuild_encoder
from tests.conftest import draw_photo
from tests.test_cli import best, fail, run
from tests.test_normalizer import draw, paint


def rows_of(path="predictions.csv"):
    with Path(path).open(newline="") as file:
        return {Path(row["path"]).stem: row for row in csv.DictReader(file)}


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Digits and what is none, on paper."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for digit in (0, 1, 2, 4, 7):
        paint(draw(digit, (320, 240), 150.0, 14)).convert("RGB").save(folder / f"digit {digit}.png")
    several = Image.new("L", (400, 240))
    for place in (30, 170, 300):
        several.paste(Image.fromarray((255 * draw(2, (100, 240), 120.0, 12)).astype(np.uint8)), (place, 0))
    paint(np.asarray(several) / 255).convert("RGB").save(folder / "several.png")
    Image.new("RGB", (200, 200), "white").save(folder / "white.png")
    Image.new("L", (1, 1), 40).save(folder / "point.png")
    grain = np.random.default_rng(0).normal(180, 6, (120, 160)).clip(0, 255).astype(np.uint8)
    Image.fromarray(grain).save(folder / "grain.png")
    for kind in range(3):
        draw_photo(kind, kind, (300, 200)).save(folder / f"photo {kind}.png")
    star = Image.new("L", (300, 300), 255)
    points = [(150 + 110 * np.sin(a * 0.8 * np.pi), 150 - 110 * np.cos(a * 0.8 * np.pi)) for a in range(6)]
    ImageDraw.Draw(star).line(points, fill=20, width=12, joint="curve")
    star.save(folder / "star.png")
    return folder


def test_predict_without_a_checkpoint_knows_digits_from_other_things(pictures, capsys):
    said = run(capsys, "predict", "--images", "pictures", "--figure", "seen.png")
    rows = rows_of()
    for digit in (0, 1, 2, 4, 7):
        row = rows[f"digit {digit}"]
        assert (row["label"], row["is_digit"], row["reason"]) == (str(digit), "yes", "")
        assert float(row["score"]) >= 0.5
    for name in ("white", "point", "grain"):
        assert (rows[name]["label"], rows[name]["is_digit"], rows[name]["reason"]) == ("none", "no", "nothing on it")
        assert float(rows[name]["score"]) == 0
        assert rows[name]["probability"] == ""
    assert rows["several"]["is_digit"] == "no"
    assert rows["several"]["reason"].startswith("3 digits")
    for name in ("star", "photo 0", "photo 1", "photo 2"):
        assert rows[name]["is_digit"] == "no", name
    refused = sum(row["is_digit"] == "no" for row in rows.values())
    assert f"{len(rows)} images, {refused} not taken for a digit" in said
    assert Image.open("seen.png").size[0] > 500


def test_page_and_index_see_what_predict_says(pictures, capsys):
    run(capsys, "predict", "--images", "pictures")
    recogniser = Recogniser(EMBEDDED)
    for name, row in rows_of().items():
        answer = recogniser.recognise(read_image(pictures / f"{name}.png", 3))
        if row["label"] == "none":
            assert answer is None
            continue
        assert answer.refusal == row["reason"]
        assert float(row["score"]) == pytest.approx(answer.score, abs=2e-6)  # by onnxruntime, where it is installed
        assert float(row["probability"]) == pytest.approx(answer.probabilities[row["label"]], abs=2e-6)
    encoder = build_encoder("digits", device="cpu")
    header = describe_encoder(encoder)
    assert json.loads(header["built"])["arguments"] == {"path": "digits"}  # wherever the package is installed
    assert rebuild_encoder(header, device="cpu").identity == encoder.identity
    assert np.array_equal(
        encoder.prepare(read_image(pictures / "digit 4.png", 3)),
        recogniser.recognise(read_image(pictures / "digit 4.png", 3)).seen,
    )


def test_the_network_that_comes_with_the_package_is_small_and_has_its_card():
    files = {path.name: path.stat().st_size for path in EMBEDDED.iterdir()}
    assert set(files) == {"model.safetensors", "model.onnx", "config.json", "README.md"}
    assert sum(files.values()) < 1_000_000
    model = load_classifier(EMBEDDED)
    assert model.class_names == [str(digit) for digit in range(10)]
    assert model.normalizer is not None
    assert torch.isfinite(model.calibration.limit)


def test_it_reads_other_hands(shared):
    folder = shared / "data" / "handwriting" / "digits"
    if not folder.is_dir():
        pytest.skip("the handwriting is not there")
    recogniser = Recogniser(EMBEDDED)
    for hand in ("photo_a", "photo_b"):
        paths = sorted((folder / hand).glob("*/*"))
        answers = [recogniser.recognise(read_image(path, 3)) for path in paths]
        assert [answer.best for answer in answers] == [path.parent.name for path in paths]


def test_no_checkpoint_where_one_is_needed_is_still_an_error(pictures, capsys):
    assert "validate needs a trained network" in fail(capsys, "validate")


def test_fit_leaves_a_calibrated_checkpoint_and_export_keeps_it(trained, capsys):
    run_folder = Run(Path(trained))
    model = load_classifier(Path(best(trained)))
    temperature = model.calibration.temperature.item()
    assert temperature != 1
    found = evaluate(model, run_folder.load_data().val_set)
    plain = torch.nn.functional.cross_entropy(found.logits, found.labels)
    assert torch.nn.functional.cross_entropy(found.logits / temperature, found.labels) <= plain
    # The losses are those of the scores as they are, without label smoothing.
    noted = next(row for row in run_folder.summary["history"] if row["epoch"] == run_folder.summary["best_epoch"])
    assert noted["val_loss"] == pytest.approx(plain.item(), abs=1e-4)
    assert model.recipe.label_smoothing > 0
    assert (model.calibration.familiarity(found.logits) >= 0.5).float().mean() >= 0.9
    assert export.main([str(trained), "exported", "--weights_only"]) == 0
    assert {path.name for path in Path("exported").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    exported = load_classifier(Path("exported"))
    assert exported.calibration.temperature.item() == temperature
    assert exported.calibration.limit.item() == model.calibration.limit.item()
    assert "model.onnx" not in Path("exported/README.md").read_text()


def test_a_checkpoint_from_before_is_still_read():
    model = CustomCNN(["a", "b"], 1, 28)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("calibration.")}
    model.load_state_dict({**state, "temperature": torch.tensor(0.5)})
    assert model.calibration.temperature == 0.5
    assert model.calibration.familiarity(torch.zeros(3, 2)).tolist() == [1, 1, 1]


def test_calibration_refuses_one_in_a_hundred_and_corrects_confidence():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3000) % 10
    logits = torch.randn(3000, 10, generator=generator)
    logits[torch.arange(3000), labels] += 4
    calibration = Calibration()
    assert torch.equal(calibration.probabilities(logits), logits.softmax(dim=1))
    assert (calibration.familiarity(logits) == 1).all()
    before = expected_calibration_error((3 * logits).softmax(dim=1), labels)
    calibration.fit(3 * logits, labels)
    assert expected_calibration_error(calibration.probabilities(3 * logits), labels) < before / 2
    assert (calibration.familiarity(3 * logits) < 0.5).float().mean() == pytest.approx(0.008, abs=0.002)
    assert (calibration.familiarity(torch.zeros(5, 10)) < 0.5).all()


def test_outliers_are_trained_to_be_no_class_more_than_another():
    model = CustomCNN(["a", "b"], 1, 28, recipe=Recipe(learning_rate=0.1, label_smoothing=0.1))
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    labels = torch.tensor([1, 0])
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert model.loss(logits, labels) == pytest.approx(expected.item())
    outliers = torch.full((2,), OUTLIER)
    even = torch.nn.functional.cross_entropy(logits, torch.full((2, 2), 0.5))
    assert model.loss(logits, outliers) == pytest.approx(even.item())
    metrics = model.train_metrics
    metrics.update(logits, torch.tensor([0, OUTLIER]))
    assert metrics.compute()["train_accuracy"] == 1


@pytest.mark.parametrize(
    ("digits", "score", "why"),
    [(0, 0.9, "nothing on it"), (2, 0.9, "2 digits"), (1, 0.4, "unlike what was trained on"), (1, 0.5, "")],
)
def test_why_a_picture_is_refused(digits, score, why):
    assert refusal(digits, score).startswith(why)
    assert bool(refusal(digits, score)) == bool(why)
