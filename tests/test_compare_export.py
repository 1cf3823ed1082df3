import csv
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from datamodules.errors import UserError
from lightning_modules.calibration import expected_calibration_error, fit_temperature
from lightning_modules.checkpoint import load_classifier
from lightning_modules.cli import main
from lightning_modules.commands import compare, export
from lightning_modules.evaluation import evaluate
from lightning_modules.run import Run
from tests.conftest import TINY, start
from tests.test_cli import fail, run

FIRST, SECOND = "runs/custom_cnn/version_0", "runs/reference_cnn/version_0"


@pytest.fixture
def two_runs(trained, capsys):
    assert main(["fit", "--config", TINY, "--model", "ReferenceCNN", "--trainer.max_epochs", "1"]) == 0
    capsys.readouterr()


def command(capsys, module, *args):
    status = module.main(list(args))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return status, captured.out, captured.err


def test_runs_are_compared_in_a_table_a_csv_and_a_picture(two_runs, capsys, workplace):
    status, out, _ = command(capsys, compare, FIRST, SECOND)
    assert status == 0
    with (workplace / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["CustomCNN", "ReferenceCNN"]
    for row, folder in zip(rows, (FIRST, SECOND), strict=True):
        summary = json.loads((workplace / folder / "summary.json").read_text())
        assert float(row["val_accuracy"]) == pytest.approx(summary["val_accuracy"], abs=1e-6)
        assert int(row["best_epoch"]) == summary["best_epoch"]
        assert int(row["parameters"]) == summary["parameters"]
        assert float(row["images_per_second"]) > 0
        assert row["run"] in out
    assert "note" not in out
    assert (workplace / "comparison.png").stat().st_size > 0


def test_runs_on_different_splits_are_said_to_be(trained, capsys):
    run(capsys, "fit", "--config", TINY, "--data.split_seed", "1", "--trainer.max_epochs", "1")
    status, out, _ = command(capsys, compare, FIRST, "runs/custom_cnn/version_1")
    assert status == 0
    assert "custom_cnn/version_1 and custom_cnn/version_0 were validated on different images" in out


def test_the_name_of_the_figure_says_its_format(trained, capsys, workplace):
    assert command(capsys, compare, FIRST, "--figure", "x.pdf")[0] == 0
    assert (workplace / "x.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("figure", "message"),
    [
        ("no/x.png", "no/x.png: no such folder"),
        ("digits", "digits: a folder; name a file in it"),
        ("digits/0_digits/0.png/x.png", "digits/0_digits/0.png/x.png: no such folder"),
        ("x.csv", "x.csv: not a picture format; name it .png, .pdf or .svg"),
    ],
)
def test_a_figure_that_cannot_be_written_is_named_as_the_user_named_it(trained, capsys, figure, message):
    status, _, err = command(capsys, compare, FIRST, "--figure", figure)
    assert status == 1
    assert f"error: {message}\n" in err


@pytest.mark.parametrize("accuracies", [[[0.3, 0.35, 0.38]], [[0.99] * 9, [0.3, 0.35]], [[1.0, 1.0]]])
def test_every_run_is_in_the_picture_however_good_it_is(accuracies):
    runs = []
    for number, run_accuracies in enumerate(accuracies):
        rows = [{"epoch": e, "val_accuracy": a, "train_accuracy": a} for e, a in enumerate(run_accuracies, 1)]
        summary = {"history": rows, "val_accuracy": max(run_accuracies)}
        run = Run(Path(f"runs/{number}"))
        run.summary = summary
        runs.append(run)
    (axes,) = compare.plot_comparison(runs).axes
    bottom, top = axes.get_ylim()
    for values in accuracies:
        assert any(bottom < 100 * value < top for value in values)


@pytest.mark.parametrize("missing", ["summary.json", "split.csv", "checkpoints"])
def test_a_folder_that_is_no_finished_run_is_a_clear_error(trained, capsys, missing):
    victim = trained / missing
    victim.unlink() if victim.is_file() else shutil.rmtree(victim)
    for module, args in ((compare, (FIRST,)), (export, (FIRST, "out"))):
        status, out, err = command(capsys, module, *args)
        assert (status, out) == (1, "")
        assert f"error: {FIRST}: not a finished run ({missing}" in err


def test_a_damaged_summary_is_a_clear_error(trained, capsys):
    (trained / "summary.json").write_text("{")
    status, _, err = command(capsys, compare, FIRST)
    assert status == 1
    assert "summary.json: damaged" in err


@pytest.fixture
def exported(trained, workplace):
    # In a process of its own, which has imported nothing else.
    process = start(FIRST, "DigitDoodleNet", module="lightning_modules.export")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return workplace / "DigitDoodleNet", out


def test_every_exported_form_agrees_with_the_network(exported, workplace, capsys):
    folder, out = exported
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.onnx",
        "model.pt2",
        "model.safetensors",
    ]
    assert [line.split()[0] for line in out.splitlines()[:3]] == ["model.safetensors", "model.pt2", "model.onnx"]

    data = Run(workplace / FIRST).load_data()
    eager = load_classifier(workplace / FIRST / "checkpoints" / "best.ckpt")
    config = json.loads((folder / "config.json").read_text())
    assert eager.calibration.temperature.item() == config["temperature"] != 1
    evaluated = evaluate(eager, data.val_set)
    expected, familiarity = evaluated.probabilities, eager.calibration.familiarity(evaluated.logits)
    images = data.val_set.batch(range(len(data.val_set))).images
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].type == "tensor(uint8)"
    program = torch.export.load(folder / "model.pt2").module()
    for count in (1, len(images)):
        found, score = session.run(None, {"images": images[:count].numpy()})
        np.testing.assert_allclose(found, expected[:count], atol=1e-3)
        np.testing.assert_allclose(score, familiarity[:count], atol=1e-4)
        torch.testing.assert_close(program(images[:count]), expected[:count], atol=1e-3, rtol=0)
    torch.testing.assert_close(evaluate(load_classifier(folder), data.val_set).probabilities, expected)

    # What is needed to feed them travels with each.
    names = ["0_digits", "1_digits", "2_digits"]
    (given,) = session.get_inputs()
    assert given.shape == config["input"]["shape"] == ["batch", 1, 20, 20]
    got = {output.name: output.shape for output in session.get_outputs()}
    assert got == config["outputs"] == {"probabilities": ["batch", 3], "score": ["batch"]}
    metadata = session.get_modelmeta().custom_metadata_map
    with safe_open(folder / "model.safetensors", "pt") as weights:
        saved = weights.metadata()
    extra = {"class_names": "", "input": "", "temperature": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    for described in (metadata, saved, extra):
        assert json.loads(described["class_names"]) == names
        assert json.loads(described["input"])["shape"] == ["batch", 1, 20, 20]
        assert json.loads(described["temperature"]) == config["temperature"]
    written = (folder / "model.onnx").read_bytes()
    for internal in (b"s34", b"lightning_modules/"):
        assert internal not in written
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        assert not [name for name in archive.namelist() if b"lightning_modules/" in archive.read(name)]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1

    card = (folder / "README.md").read_text()
    for part in ("0_digits", "CustomCNN", "Intended use and limits", "lightning", "temperature scaling"):
        assert part in card

    # `predict` accepts the folder too, with the temperature.
    run(capsys, "predict", "--ckpt_path", "DigitDoodleNet", "--images", *[f"digits/{n}" for n in data.val_set.names])
    with (workplace / "predictions.csv").open() as file:
        predicted = [float(row["probability"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(predicted, expected.amax(dim=1), atol=1e-5)

    # An earlier export is replaced; anything else is not.
    status, _, _ = command(capsys, export, FIRST, "DigitDoodleNet")
    assert status == 0
    status, _, err = command(capsys, export, FIRST, "digits")
    assert status == 1
    assert "digits: holds something that is not an export" in err
    assert (workplace / "digits" / "0_digits").exists()
    (workplace / "DigitDoodleNet" / "notes.txt").write_text("my own")
    status, _, err = command(capsys, export, FIRST, "DigitDoodleNet")
    assert status == 1
    assert "DigitDoodleNet: holds something that is not an export" in err
    assert (workplace / "DigitDoodleNet" / "notes.txt").exists()
    foreign = workplace / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "vit"}')  # a model of some other package
    (foreign / "model.safetensors").write_text("theirs")
    status, _, err = command(capsys, export, FIRST, "foreign")
    assert status == 1
    assert "foreign: holds something that is not an export" in err
    assert (foreign / "model.safetensors").read_text() == "theirs"
    assert not list(workplace.glob(".DigitDoodleNet*"))


def test_an_export_whose_data_have_gone_is_a_clear_error(trained, capsys, workplace):
    shutil.rmtree(workplace / "digits")
    status, _, err = command(capsys, export, FIRST, "out")
    assert status == 1
    assert "digits: no such file or directory" in err
    assert not (workplace / "out").exists()


@pytest.mark.slow
def test_a_run_is_exported_from_any_folder(trained, capsys, workplace, monkeypatch):
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    status, _, err = command(capsys, export, str(trained), "out")
    assert status == 0, err
    shutil.move(workplace / "digits", "moved")
    status, _, err = command(capsys, export, str(trained), "out")
    assert status == 1
    assert "digits: no such file or directory" in err
    assert "--data.root" in err
    status, _, err = command(capsys, export, str(trained), "out", "--data.root", "moved")
    assert status == 0, err
    status, _, err = command(capsys, export, str(trained), "out", "--data.root", "nowhere")
    assert status == 1
    assert "nowhere: no such file or directory" in err


@pytest.mark.slow
def test_the_cache_is_found_from_any_folder(workplace, capsys, monkeypatch):
    (workplace / "elsewhere").mkdir()
    run(capsys, "fit", "--config", TINY, "--trainer.max_epochs", "1", "--data.cache_dir", "cache")
    monkeypatch.chdir(workplace / "elsewhere")
    status, _, err = command(capsys, export, str(workplace / FIRST), "out")
    assert status == 0, err
    assert [path.name for path in Path().iterdir()] == ["out"]


def test_a_summary_that_does_not_say_where_its_run_was_leaves_the_current_folder(trained, capsys, workplace):
    summary = json.loads((trained / "summary.json").read_text())
    del summary["run"]
    (trained / "summary.json").write_text(json.dumps(summary))
    shutil.move(workplace / "digits", "moved")
    status, _, err = command(capsys, export, FIRST, "out")
    assert status == 1
    assert "digits: no such file or directory" in err


@pytest.mark.slow
def test_data_without_a_root_take_none(workplace, capsys):
    run(capsys, "fit", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2")
    status, _, err = command(capsys, export, FIRST, "out", "--data.root", "digits")
    assert status == 1
    assert "OptDigitsDataModule has no root" in err


def test_a_network_that_has_diverged_is_not_exported(trained, capsys, workplace):
    path = trained / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["head.weight"].fill_(float("nan"))
    torch.save(checkpoint, path)
    status, out, err = command(capsys, export, FIRST, "out")
    assert (status, out) == (1, "")
    assert f"error: {FIRST}/checkpoints/best.ckpt: the network's class scores are not finite" in err
    assert not (workplace / "out").exists()


def test_an_export_without_its_packages_names_them(trained, capsys, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda package: None)
    status, _, err = command(capsys, export, FIRST, "out")
    assert status == 1
    assert 'pip install ".[export]" in the clone' in err


def test_a_damaged_export_is_a_clear_error(trained, capsys, workplace):
    (workplace / "broken").mkdir()
    assert "not an exported network" in fail(capsys, "predict", "--ckpt_path", "broken", "--images", "digits")
    (workplace / "broken" / "config.json").write_text("[]")
    assert "config.json: damaged" in fail(capsys, "predict", "--ckpt_path", "broken", "--images", "digits")
    with pytest.raises(UserError, match="no such file or directory"):
        load_classifier(workplace / "nowhere")


def test_the_temperature_corrects_what_it_should():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20_000, 5, generator=generator) * 2
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).flatten()
    assert fit_temperature(logits * 3, labels) == pytest.approx(3, rel=0.03)
    assert fit_temperature(logits / 2, labels) == pytest.approx(0.5, rel=0.03)
    assert expected_calibration_error(logits.softmax(dim=1), labels) < 0.02
    assert expected_calibration_error((logits * 3).softmax(dim=1), labels) > 0.1


def test_the_temperature_has_bounds_where_nothing_is_wrong():
    labels = torch.arange(3).repeat(10)
    assert fit_temperature(torch.nn.functional.one_hot(labels, 3).float(), labels) == 0.05
