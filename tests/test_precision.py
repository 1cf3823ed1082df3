"""One checkpoint gives one answer, whatever precision it was trained in and whatever command asks."""

import csv
import json
import re
from pathlib import Path

import onnxruntime
import pytest
import torch

from lightning_modules import hardware
from lightning_modules.checkpoint import load_classifier
from lightning_modules.commands import export
from lightning_modules.evaluation import evaluate
from lightning_modules.hardware import cpu_has_bf16, fastest_precision
from lightning_modules.networks.custom_cnn import CustomCNN
from lightning_modules.networks.mobilenetv2 import MobileNetV2
from lightning_modules.run import Run
from tests.conftest import TINY
from tests.test_cli import best, run

CPU = torch.device("cpu")
SMALL = ["--model", "MobileNetV2", "--model.variant", "mobilenetv2_035", "--model.weights", "null"]
NETWORKS = {"custom_cnn": [], "mobilenetv2": [*SMALL, "--model.input_size", "32"]}
# Slow enough that many images are close to the border between two classes, where reduced precision would tell.
SLOW = ["--model.recipe.learning_rate", "0.002", "--trainer.max_epochs", "1", "--trainer.callbacks", "null"]


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_all_commands_and_forms_agree_on_a_checkpoint(workplace, capsys, network, precision):
    table = run(capsys, "fit", "--config", TINY, *NETWORKS[network], *SLOW, "--trainer.precision", precision)
    folder = workplace / "runs" / network / "version_0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["precision"] == precision
    data = Run(folder).load_data()
    expected = evaluate(load_classifier(Path(best(folder))), data.val_set)
    count = len(expected.labels)
    mistakes = int((expected.predicted != expected.labels).sum())

    assert summary["val_mistakes"] == mistakes
    assert summary["history"][0]["val_accuracy"] == pytest.approx(expected.accuracy)
    assert f"({count - mistakes} of {count})" in table
    loss = torch.nn.functional.cross_entropy(expected.logits, expected.labels).item()
    for command, subset in (("validate", "val"), ("test", "test")):
        printed = run(capsys, command, "--ckpt_path", best(folder))
        assert f"{expected.accuracy:.4f}" in re.search(rf"{subset}_accuracy +(\S+)", printed)[1]
        assert float(re.search(rf"{subset}_loss +(\S+)", printed)[1]) == pytest.approx(loss, abs=1e-4)

    files = [f"digits/{name}" for name in data.val_set.names]
    run(capsys, "predict", "--ckpt_path", best(folder), "--images", *files)
    assert_predicted("predictions.csv", data.class_names, expected.probabilities)

    assert export.main([str(folder), "exported"]) == 0
    model = load_classifier(Path(best(folder)))
    calibrated = evaluate(model, data.val_set).probabilities
    images = data.val_set.batch(range(count)).images
    session = onnxruntime.InferenceSession("exported/model.onnx", providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        forms = [
            load_classifier(Path("exported")).probabilities(images),
            torch.export.load("exported/model.pt2").module()(images),
            torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
        ]
    for form in forms:
        torch.testing.assert_close(form, calibrated, atol=1e-4, rtol=0)
        assert torch.equal(form.argmax(dim=1), expected.predicted)
    assert f"{expected.accuracy:.2%}" in Path("exported/README.md").read_text()
    run(capsys, "predict", "--ckpt_path", "exported", "--images", *files)
    assert_predicted("predictions.csv", data.class_names, calibrated)


def assert_predicted(path, class_names, probabilities):
    with Path(path).open(newline="") as file:
        for row, expected in zip(csv.DictReader(file), probabilities, strict=True):
            assert row["label"] == class_names[expected.argmax()]
            assert float(row["probability"]) == pytest.approx(expected.max().item(), abs=1e-4)


def test_scores_are_in_reduced_precision_only_where_that_is_asked_for(trained, capsys):
    exact = run(capsys, "validate", "--ckpt_path", best(trained))
    reduced = run(capsys, "validate", "--ckpt_path", best(trained), "--trainer.precision", "bf16-mixed")
    loss = [float(re.search(r"val_loss +(\S+)", printed)[1]) for printed in (exact, reduced)]
    assert loss[0] != loss[1]
    assert loss[0] == pytest.approx(loss[1], abs=0.05)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "16-mixed"])
def test_every_precision_of_the_trainer_trains(workplace, capsys, precision):
    options = ["--trainer.precision", precision, "--trainer.max_epochs", "1"]
    assert "validation accuracy" in run(capsys, "fit", "--config", TINY, *options)


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize("network", NETWORKS)
def test_training_takes_the_precision_that_is_fastest_for_the_network_and_the_cpu(
    workplace, capsys, monkeypatch, bf16, network
):
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: bf16)
    run(capsys, "fit", "--config", TINY, *NETWORKS[network], "--trainer.max_epochs", "1")
    summary = json.loads((workplace / "runs" / network / "version_0" / "summary.json").read_text())
    assert summary["precision"] == ("bf16-mixed" if bf16 and network == "custom_cnn" else "32-true")


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon"])
def test_gradients_can_be_clipped_in_the_precision_that_was_chosen(workplace, capsys, precision, optimizer):
    options = ["--trainer.precision", precision, "--model.recipe.optimizer", optimizer, "--trainer.max_epochs", "1"]
    run(capsys, "fit", "--config", TINY, *options, "--trainer.gradient_clip_val", "0.5")


def test_reduced_precision_is_chosen_only_where_it_is_native_and_faster(monkeypatch):
    dense = CustomCNN(["0", "1"], 1, 28)
    grouped = MobileNetV2(["0", "1"], 1, 28, variant="mobilenetv2_035", weights=None)
    frozen = MobileNetV2(["0", "1"], 1, 28, variant="mobilenetv2_035", weights=None, unfreeze_at=None)
    for has, precision in ((False, "32-true"), (True, "bf16-mixed")):
        monkeypatch.setattr(hardware, "cpu_has_bf16", lambda has=has: has)
        assert fastest_precision(CPU, dense) == precision
        assert fastest_precision(CPU, frozen) == precision
        assert fastest_precision(CPU, grouped) == "32-true"
    for capability, precision in (((6, 1), "32-true"), ((7, 5), "16-mixed"), ((9, 0), "bf16-mixed")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert fastest_precision(torch.device("cuda"), grouped) == precision


@pytest.mark.parametrize(
    ("instructions", "allowed", "has"),
    [
        ({"avx2": True}, None, False),
        ({"avx2": True, "avx512_bf16": True}, None, True),
        ({"avx512_bf16": True}, "avx2", False),
        ({"avx512_bf16": True}, "AVX512_CORE_BF16", True),
        ({"amx_bf16": True}, None, True),
        ({"bf16": True}, None, False),  # of ARM, where nothing was measured
    ],
)
def test_a_cpu_has_bf16_if_onednn_may_use_it(monkeypatch, instructions, allowed, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if allowed is not None:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert cpu_has_bf16() is has
