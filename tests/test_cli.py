import csv
import importlib
import inspect
import json
import os
import re
import shutil
import signal
import stat
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import Union

import pytest
import tensorboard.compat
import torch
import yaml
from lightning import Trainer
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser

from datamodules import ImageFolderDataModule
from datamodules.errors import UserError
from lightning_modules.checkpoint import load_classifier
from lightning_modules.cli import check_processes, keep_integers, main
from lightning_modules.evaluation import evaluate
from lightning_modules.networks.mobilenetv2 import MobileNetV2
from lightning_modules.networks.reference_cnn import ReferenceCNN
from lightning_modules.run import Run
from tests.conftest import REPOSITORY, TINY, draw_digit


def run(capsys, *args, main=main):
    """Run a command that must succeed; returns what it prints on stdout."""
    status = main(list(args))
    captured = capsys.readouterr()
    assert status == 0, captured.err
    return captured.out


def fail(capsys, *args, main=main):
    """Run a command that must fail; returns the one line that says why."""
    try:
        status = main(list(args))
    except SystemExit as exit_:
        status = exit_.code
    captured = capsys.readouterr()
    assert status not in (0, None)
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert captured.err.count("error: ") == 1
    return captured.err[captured.err.index("error: ") :]


def best(run_folder):
    return str(run_folder / "checkpoints" / "best.ckpt")


def test_fit_leaves_a_run_folder_to_look_at(workplace, capsys):
    table = run(capsys, "fit", "--config", TINY)
    folder = workplace / "runs" / "custom_cnn" / "version_0"
    pictures = ("accuracy", "augmentation", "classes", "confusion_matrix", "mistakes")
    for name in [f"{name}.png" for name in pictures] + ["config.yaml", "metrics.csv", "split.csv"]:
        assert (folder / name).stat().st_size > 0, name
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]
    assert list(folder.glob("events.out.tfevents*"))
    summary = json.loads((folder / "summary.json").read_text())
    assert {
        "val_accuracy",
        "best_epoch",
        "epochs",
        "seconds",
        "parameters",
        "checkpoint",
        "versions",
    } <= summary.keys()
    assert summary["epochs"] == 3
    assert 1 <= summary["stop_epoch"] <= summary["best_epoch"] <= 3
    assert len(summary["history"]) == 3
    assert "validation accuracy" in table
    assert "runs/custom_cnn/version_0" in table


def test_the_reported_accuracy_is_that_of_the_best_checkpoint(trained, capsys):
    summary = json.loads((trained / "summary.json").read_text())
    data = ImageFolderDataModule("digits", image_size=20)
    data.prepare_data()
    data.setup("fit")
    predictions = evaluate(load_classifier(trained / "checkpoints" / "best.ckpt"), data.val_set)
    assert predictions.accuracy == pytest.approx(summary["val_accuracy"])
    assert summary["val_mistakes"] == (predictions.predicted != predictions.labels).sum()
    printed = run(capsys, "validate", "--ckpt_path", best(trained))
    assert re.search(rf"val_accuracy +{summary['val_accuracy']:.4f}", printed)


def test_the_split_of_the_run_is_that_of_the_datamodule(trained):
    data = ImageFolderDataModule("digits", image_size=20)
    data.prepare_data()
    data.setup("fit")
    with (trained / "split.csv").open() as file:
        written = {row["file"]: row["subset"] for row in csv.DictReader(file)}
    assert {name for name, subset in written.items() if subset == "val"} == set(data.val_set.names)
    assert {name for name, subset in written.items() if subset == "train"} == set(data.train_set.names)


@pytest.mark.slow
def test_a_second_run_has_a_folder_of_its_own(trained, capsys):
    before = (trained / "summary.json").read_bytes()
    run(capsys, "fit", "--config", TINY, "--trainer.max_epochs", "1")
    assert (trained.parent / "version_1" / "summary.json").exists()
    assert (trained / "summary.json").read_bytes() == before
    run(capsys, "fit", "--config", TINY, "--trainer.max_epochs", "1", "--name", "mine")
    assert (trained.parent.parent / "mine" / "version_0" / "summary.json").exists()


def test_the_saved_config_runs_again_to_the_same_weights(trained, capsys):
    run(capsys, "fit", "--config", str(trained / "config.yaml"))
    again = trained.parent / "version_1"
    assert_same_weights(trained / "checkpoints" / "last.ckpt", again / "checkpoints" / "last.ckpt")


def test_the_same_seed_gives_the_same_weights_and_another_one_others(trained, capsys):
    for seed in ("7", "8"):  # 7 is the config's
        run(capsys, "fit", "--config", TINY, "--seed_everything", seed)
    last = [trained.parent / f"version_{number}" / "checkpoints" / "last.ckpt" for number in range(3)]
    assert_same_weights(last[0], last[1])
    with pytest.raises(AssertionError):
        assert_same_weights(last[0], last[2])


def assert_same_weights(first, second):
    first, second = (torch.load(path, weights_only=True) for path in (first, second))
    for key in ("state_dict", "current_model_state"):
        assert first[key].keys() == second[key].keys()
        assert all(torch.equal(first[key][name], second[key][name]) for name in first[key]), key


def test_test_and_validate_need_nothing_but_the_checkpoint(trained, capsys):
    tested = run(capsys, "test", "--ckpt_path", best(trained))
    assert "test_accuracy " in tested
    assert "test_accuracy/1_digits" in tested
    assert sorted(path.name for path in trained.parent.parent.iterdir()) == ["custom_cnn"]
    assert [path.name for path in trained.parent.iterdir()] == ["version_0"]


def test_test_takes_a_test_folder(trained, capsys, workplace):
    shutil.copytree("digits", "others")
    printed = run(capsys, "test", "--ckpt_path", best(trained), "--data.test_root", "others")
    assert "test_accuracy " in printed


def said_of(rows):
    """What ``predict`` prints of what it writes, whatever the network makes of the pictures."""
    refused = sum(row["is_digit"] == "no" for row in rows)
    aside = f", {refused} not taken for a digit" if refused else ""
    return f"{len(rows)} images{aside}: predictions.csv\n"


def test_predict_writes_path_label_probability_and_the_top_three(trained, capsys, workplace):
    draw_digit(2, 77, 50).convert("RGBA").save("ünï code.png")
    draw_digit(1, 78).convert("CMYK").save("big.tiff")
    printed = run(
        capsys,
        "predict",
        "--ckpt_path",
        best(trained),
        "--images",
        "ünï code.png",
        "digits/0_digits",
        "big.tiff",
    )
    with Path("predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert printed == said_of(rows)
    assert list(rows[0]) == [
        "path",
        "label",
        "probability",
        "label_2",
        "probability_2",
        "label_3",
        "probability_3",
        "is_digit",
        "score",
        "reason",
    ]
    paths = [f"digits/0_digits/{number}.png" for number in range(20)]
    assert [row["path"] for row in rows] == ["ünï code.png", *paths, "big.tiff"]
    for row in rows:
        probabilities = [float(row[key]) for key in ("probability", "probability_2", "probability_3")]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert {row["label"], row["label_2"], row["label_3"]} == {
            "0_digits",
            "1_digits",
            "2_digits",
        }


def test_predict_agrees_with_validation_on_the_same_files(trained, capsys):
    data = ImageFolderDataModule("digits", image_size=20)
    data.prepare_data()
    data.setup("fit")
    expected = evaluate(load_classifier(trained / "checkpoints" / "best.ckpt"), data.val_set)
    files = [f"digits/{name}" for name in data.val_set.names]
    run(capsys, "predict", "--ckpt_path", best(trained), "--images", *files, "--output", "out.csv")
    with Path("out.csv").open() as file:
        for row, probabilities in zip(csv.DictReader(file), expected.probabilities, strict=True):
            assert float(row["probability"]) == pytest.approx(probabilities.max().item(), abs=1e-5)


def test_one_batch_is_not_all_of_them():
    parser = LightningArgumentParser()
    parser.add_argument("--limit", type=Union[float, int, None])  # noqa: UP007 - Lightning's may come to be this
    assert isinstance(parser.parse_args(["--limit", "1"]).limit, float)
    keep_integers(parser)
    kinds = [type(parser.parse_args(["--limit", limit]).limit) for limit in ("1", "1.0", "null")]
    assert kinds == [int, float, NoneType]


def test_predict_writes_nothing_of_images_that_it_never_saw(trained, capsys):
    images = ["--images", *["digits/0_digits/0.png"] * 257]  # a batch and one more
    for batches, count in (("1", 256), ("0", 0)):
        limit = ["--trainer.limit_predict_batches", batches]
        assert f"{count} images" in run(capsys, "predict", "--ckpt_path", best(trained), *images, *limit)
        with Path("predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count
        assert all(float(row["probability"]) > 0 for row in rows)


def test_predict_needs_only_the_checkpoint_not_the_training_data(trained, capsys, workplace):
    shutil.move("digits/1_digits", "elsewhere")
    shutil.rmtree("digits")
    checkpoint = shutil.copy(best(trained), "mine.ckpt")
    shutil.rmtree(trained)
    printed = run(capsys, "predict", "--ckpt_path", checkpoint, "--images", "elsewhere")
    with Path("predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    assert printed == said_of(rows)


@pytest.mark.slow
def test_a_finished_run_can_go_on_and_reports_all_epochs(workplace, capsys):
    run(capsys, "fit", "--config", TINY, "--model.recipe.schedule", "constant")
    last = "runs/custom_cnn/version_0/checkpoints/last.ckpt"
    run(capsys, "fit", "--ckpt_path", last, "--trainer.max_epochs", "5")
    summary = json.loads((workplace / "runs" / "custom_cnn" / "version_1" / "summary.json").read_text())
    assert [row["epoch"] for row in summary["history"]] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_resumed_run_keeps_the_best_checkpoint_of_the_earlier_one(workplace, capsys):
    run(capsys, "fit", "--config", TINY, "--model.recipe.schedule", "constant", "--model.recipe.learning_rate", "0.05")
    first = workplace / "runs" / "custom_cnn" / "version_0"
    # What follows can't be better: the network is thrown off by a learning rate that is far too high.
    last = str(first / "checkpoints" / "last.ckpt")
    checkpoint = torch.load(last, weights_only=True)
    for group in checkpoint["optimizer_states"][0]["param_groups"]:
        group["lr"] = 10
    torch.save(checkpoint, last)
    run(capsys, "fit", "--ckpt_path", last, "--trainer.max_epochs", "4")
    summaries = [json.loads((first.with_name(f"version_{n}") / "summary.json").read_text()) for n in (0, 1)]
    assert summaries[1]["best_epoch"] == summaries[0]["best_epoch"]
    assert summaries[1]["val_accuracy"] == summaries[0]["val_accuracy"]
    assert summaries[1]["checkpoint"].startswith("runs/custom_cnn/version_1/")


def test_a_run_that_goes_on_from_its_best_checkpoint_is_calibrated_anew(workplace, capsys):
    fit = ("fit", "--config", TINY, "--model.recipe.schedule", "constant")
    run(capsys, *fit, "--trainer.max_epochs", "2")
    before = best(workplace / "runs" / "custom_cnn" / "version_0")
    assert torch.load(before, weights_only=True)["state_dict"]["calibration.limit"] > -1e38
    run(capsys, *fit, "--trainer.max_epochs", "4", "--ckpt_path", before, "--name", "more")
    last = torch.load("runs/more/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert last["calibration.limit"] < -1e38  # without effect
    assert last["calibration.temperature"] == 1


@pytest.mark.parametrize("name", ["custom_cnn", "again"])
def test_a_run_that_is_resumed_from_another_folder_keeps_its_best_checkpoint(trained, capsys, monkeypatch, name):
    elsewhere = trained.parents[2] / "elsewhere"
    elsewhere.mkdir()
    shutil.move("digits", elsewhere)
    monkeypatch.chdir(elsewhere)
    run(capsys, "fit", "--ckpt_path", str(trained / "checkpoints" / "last.ckpt"), "--name", name)
    resumed = elsewhere / "runs" / name / "version_0"
    assert Path(best(resumed)).read_bytes() == Path(best(trained)).read_bytes()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (trained, resumed)]
    for key in ("best_epoch", "val_accuracy", "stop_epoch", "history"):
        assert summaries[1][key] == summaries[0][key]


def test_a_resumed_run_takes_no_other_run_for_its_best(trained, capsys, caplog):
    shutil.copytree(trained / "checkpoints", "models")
    shutil.rmtree("runs")
    best = torch.load("models/best.ckpt", weights_only=True)
    (key,) = [key for key in best["callbacks"] if key.startswith("BestCheckpoint")]
    best["callbacks"][key]["best_model_score"] -= 0.01
    torch.save(best, "models/best.ckpt")
    with caplog.at_level("INFO"):
        assert run(capsys, "fit", "--config", TINY, "--ckpt_path", "models/last.ckpt") == ""
    assert "There is no best checkpoint" in caplog.text
    assert not list(Path("runs").rglob("best.ckpt"))


@pytest.mark.parametrize("in_folder", [True, False])
def test_a_config_that_lies_beside_a_checkpoint_by_chance_is_not_read(trained, capsys, in_folder):
    last = Path("models" if in_folder else "", "last.ckpt")
    last.parent.mkdir(exist_ok=True)
    shutil.copy(trained / "checkpoints" / "last.ckpt", last)
    Path("config.yaml").write_text("colour: blue\n")
    run(capsys, "fit", "--ckpt_path", str(last), "--config", TINY)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("fit", ["--trainer.val_check_interval", "1000"], "val_check_interval"),
        ("fit", ["--trainer.limit_val_batches", "0.01"], "limit_val_batches"),
        (
            "validate",
            ["--trainer.limit_val_batches", "0"],
            "no image was scored: --trainer.limit_*_batches leaves none",
        ),
        ("test", ["--trainer.limit_test_batches", "0.01"], "limit_test_batches"),
    ],
)
def test_limits_that_leave_nothing_to_do_are_one_clear_line(trained, capsys, command, options, message):
    given = ["--config", TINY] if command == "fit" else ["--ckpt_path", best(trained)]
    err = fail(capsys, command, *given, *options)
    assert message in err
    assert "Traceback" not in err
    assert [path.name for path in trained.parent.iterdir()] == ["version_0"]


def history(run_folder):
    return [row["epoch"] for row in json.loads((run_folder / "summary.json").read_text())["history"]]


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--trainer.max_steps", "2"], ["--trainer.limit_val_batches", "0"]])
def test_a_run_that_is_never_validated_ends_well_and_says_so(workplace, capsys, caplog, options):
    with caplog.at_level("INFO"):
        assert run(capsys, "fit", "--config", TINY, *options) == ""
    assert caplog.text.count("There is no best checkpoint, so there is no summary") == 1
    folder = workplace / "runs" / "custom_cnn" / "version_0"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "validated", "steps"),
    [
        (["--trainer.max_steps", "7"], [1, 2], 7),
        (["--trainer.check_val_every_n_epoch", "2"], [2], 9),
        (["--trainer.num_sanity_val_steps", "2", "--trainer.check_val_every_n_epoch", "3"], [3], 9),
    ],
)
def test_only_epochs_that_were_validated_are_reported(workplace, capsys, options, validated, steps):
    run(capsys, "fit", "--config", TINY, *options)
    folder = workplace / "runs" / "custom_cnn" / "version_0"
    assert history(folder) == validated
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == steps


@pytest.mark.slow
def test_the_printed_accuracy_is_that_of_the_images_beside_it(workplace, capsys):
    some = ["--data.batch_size", "5", "--trainer.limit_val_batches", "1"]
    table = run(capsys, "fit", "--config", TINY, *some)
    summary = json.loads((workplace / "runs" / "custom_cnn" / "version_0" / "summary.json").read_text())
    right = summary["val_images"] - summary["val_mistakes"]
    assert summary["val_accuracy"] == pytest.approx(right / summary["val_images"])
    assert f"{summary['val_accuracy']:.2%} ({right} of 12)" in table


class CtrlC(Callback):
    """Interrupts the second epoch after two batches."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_ctrl_c_after_a_validation_within_an_epoch_leaves_a_report(workplace, capsys):
    each_batch = ["--trainer.val_check_interval", "1", "--monitor", "val_loss"]
    status = main(["fit", "--config", TINY, *each_batch, "--trainer.callbacks+", "tests.test_cli.CtrlC"])
    assert status == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # which Lightning would leave ignored
    assert "best epoch           1 of 1" in capsys.readouterr().out
    assert history(workplace / "runs" / "custom_cnn" / "version_0") == [1]


class Witness(Callback):
    """Notes which files of the run are there when the Trainer has let go of the device."""

    def on_fit_end(self, trainer, pl_module):
        Witness.seen = {path.name for path in Path(trainer.log_dir).iterdir()}


@pytest.mark.slow
def test_the_report_is_made_while_the_network_is_on_its_device(workplace, capsys):
    witness = ["--trainer.callbacks+", "tests.test_cli.Witness", "--trainer.max_epochs", "1"]
    run(capsys, "fit", "--config", TINY, *witness)
    assert {"summary.json", "mistakes.png"} <= Witness.seen


@pytest.mark.slow
def test_odd_names_of_files_and_classes_do_not_cost_the_report(workplace, capsys):
    odd = os.fsdecode(b"caf\xe9 $x_$ \n")
    shutil.move("digits/1_digits", f"digits/{odd}")
    for path in list(Path("digits").glob("*/*.png")):
        path.rename(path.with_name(f"{odd}{path.name}"))
    run(capsys, "fit", "--config", TINY, "--trainer.max_epochs", "1", "--model.recipe.learning_rate", "1e-9")
    folder = workplace / "runs" / "custom_cnn" / "version_0"
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["val_accuracy_per_class"]) == ["0_digits", "2_digits", odd]
    assert summary["val_mistakes"] > 0
    for name in ("confusion_matrix.png", "mistakes.png"):
        assert (folder / name).stat().st_size > 0


def test_a_one_cycle_schedule_cannot_be_stretched(trained, capsys):
    last = str(trained / "checkpoints" / "last.ckpt")
    message = fail(capsys, "fit", "--ckpt_path", last, "--trainer.max_epochs", "5")
    assert "one-cycle schedule of 9 steps, but this run has 15" in message


def test_early_stopping_ends_a_run_on_a_plateau(workplace, capsys):
    args = (
        "--trainer.max_epochs",
        "9",
        "--early_stopping.patience",
        "1",
        "--early_stopping.min_delta",
        "1",
    )
    run(capsys, "fit", "--config", TINY, *args)
    summary = json.loads((workplace / "runs" / "custom_cnn" / "version_0" / "summary.json").read_text())
    assert summary["epochs"] == 2


def test_print_config_is_a_config(workplace, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["fit", "--config", TINY, "--print_config"])
    assert exit_.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["width"] == 8
    assert "class_names" not in config["model"]["init_args"]


def settings_of(capsys, *args):
    with pytest.raises(SystemExit):
        main(["fit", *args, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("model", [ReferenceCNN, MobileNetV2])
@pytest.mark.parametrize("config", [[], ["--config", f"{REPOSITORY}/configs/custom_cnn.yaml"]])
def test_a_network_that_is_chosen_has_its_own_defaults(capsys, model, config):
    chosen = settings_of(capsys, *config, "--model", model.__name__)["model"]["init_args"]
    own = inspect.signature(model).parameters
    assert chosen.pop("recipe") == asdict(own["recipe"].default)
    assert chosen == {name: own[name].default for name in chosen}


def test_a_network_may_be_given_as_json_of_any_length(capsys):
    given = json.dumps({"class_path": "CustomCNN", "init_args": {"width": 5}}, indent=300)
    assert settings_of(capsys, "--model", given)["model"]["init_args"]["width"] == 5


def test_a_datamodule_that_is_chosen_has_its_own_defaults(capsys):
    config = ["--config", f"{REPOSITORY}/configs/custom_cnn.yaml"]
    chosen = settings_of(capsys, *config, "--data", "ImageFolderDataModule", "--data.root", "x")["data"]["init_args"]
    own = inspect.signature(ImageFolderDataModule).parameters
    del chosen["root"], chosen["augmentation"]
    assert chosen == {name: own[name].default for name in chosen}


def test_the_reference_recipe_is_the_references(capsys):
    chosen = settings_of(capsys, "--config", f"{REPOSITORY}/configs/reference_cnn.yaml")["model"]["init_args"]
    assert chosen["recipe"] == {
        "channels_last": None,
        "class_weights": None,
        "learning_rate": 0.001,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "optimizer": "adamw",
        "schedule": "constant",
    }


def test_the_data_can_be_changed_on_the_command_line(workplace, capsys):
    args = (
        "--data",
        "OptDigitsDataModule",
        "--data.classes",
        "[0, 1]",
        "--trainer.max_epochs",
        "1",
    )
    run(capsys, "fit", "--config", TINY, *args)
    model = load_classifier(workplace / "runs" / "custom_cnn" / "version_0" / "checkpoints" / "best.ckpt")
    assert (model.class_names, model.image_size) == (["0", "1"], 8)


def test_augmentation_can_be_set_in_parts_or_switched_off(workplace, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", TINY, "--data.augmentation.degrees", "33", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["data"]["init_args"]["augmentation"]["init_args"]["degrees"] == 33
    assert config["data"]["init_args"]["augmentation"]["init_args"]["contrast"] == 0.1
    run(capsys, "fit", "--config", TINY, "--data.augmentation", "null", "--trainer.max_epochs", "1")


def test_the_reference_network_trains_too(workplace, capsys):
    run(capsys, "fit", "--config", TINY, "--model", "ReferenceCNN", "--trainer.max_epochs", "1")
    assert (workplace / "runs" / "reference_cnn" / "version_0" / "summary.json").exists()


def test_without_a_config_our_network_learns_the_embedded_digits(workplace, capsys):
    table = run(capsys, "fit", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2")
    assert "runs/custom_cnn/version_0" in table


LOGGERS = {"none": ["false"], "the user's own": ["CSVLogger", "--trainer.logger.save_dir", "logs"]}


@pytest.mark.slow
@pytest.mark.parametrize("logger", LOGGERS)
def test_each_run_has_a_folder_of_its_name_whatever_logs_it(workplace, capsys, logger):
    options = ["--trainer.max_epochs", "1", "--trainer.logger", *LOGGERS[logger], "--name", "mine"]
    for _ in range(2):
        assert "runs/mine/version_" in run(capsys, "fit", "--config", TINY, *options)
    assert [path.name for path in (workplace / "runs").iterdir()] == ["mine"]
    for number in range(2):
        folder = workplace / "runs" / "mine" / f"version_{number}"
        for name in ("summary.json", "config.yaml", "split.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
            assert (folder / name).is_file(), name
    assert Path("logs").exists() == (logger != "none")


def test_a_run_without_checkpoints_leaves_none_and_says_so(workplace, capsys, caplog):
    with caplog.at_level("INFO"):
        run(capsys, "fit", "--config", TINY, "--trainer.enable_checkpointing", "false")
    assert "There is no best checkpoint" in caplog.text
    folder = workplace / "runs" / "custom_cnn" / "version_0"
    assert (folder / "config.yaml").is_file()
    assert not (folder / "checkpoints").exists()


class Press(Callback):
    """Presses Ctrl-C in the second epoch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_run_without_checkpoints_keeps_its_metrics(workplace, capsys):
    options = ("--trainer.enable_checkpointing", "false", "--trainer.callbacks", "tests.test_cli.Press")
    assert main(["fit", "--config", TINY, *options]) == 130
    metrics = (workplace / "runs" / "custom_cnn" / "version_0" / "metrics.csv").read_text()
    assert "val_accuracy" in metrics


def test_the_progress_bar_names_the_version(workplace, capsys):
    assert main(["fit", "--config", TINY, "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1"]) == 0
    assert re.search(r"v_num[:=]\s*0\b", capsys.readouterr().err)


def test_a_trainer_without_frills_trains(workplace, capsys):
    run(capsys, "fit", "--config", TINY, "--trainer.barebones", "true", "--trainer.callbacks", "null")
    assert not (workplace / "runs").exists()


class Overfit(Callback):
    """Notes which images each epoch is trained on."""

    def on_train_epoch_start(self, trainer, pl_module):
        Overfit.seen.append([])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        Overfit.seen[-1] += batch.indices.tolist()


@pytest.mark.parametrize(("share", "batch_size"), [("2", "12"), ("0.5", "6")])
def test_the_batches_that_are_overfitted_are_the_same_in_each_epoch(workplace, capsys, share, batch_size):
    Overfit.seen = []
    options = ["--trainer.overfit_batches", share, "--trainer.callbacks+", "tests.test_cli.Overfit"]
    run(capsys, "fit", "--config", TINY, "--data.batch_size", batch_size, *options)
    assert len(Overfit.seen) == 3
    assert Overfit.seen[0] == Overfit.seen[1] == Overfit.seen[2]
    assert len(set(Overfit.seen[0])) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.recipe.optimizer", "adamw"], "trained with optimizer sgd"),
        (
            ["--model.recipe.learning_rate", "0.1"],
            "with learning_rate 0.2, by which a resumed run goes on, but this run has 0.1",
        ),
        (["--model.recipe.weight_decay", "0.5"], "trained with weight_decay 0.001"),
        (
            ["--model.recipe.schedule", "constant"],
            "with schedule one_cycle, by which a resumed run goes on, but this run has",
        ),
    ],
)
def test_a_run_is_resumed_with_the_recipe_that_it_began_with(trained, capsys, options, message):
    last = str(trained / "checkpoints" / "last.ckpt")
    assert message in fail(capsys, "fit", "--ckpt_path", last, *options)
    assert [path.name for path in trained.parent.iterdir()] == ["version_0"]


@pytest.mark.slow
def test_a_resumed_run_has_the_patience_that_it_is_given(workplace, capsys):
    plateau = ["--model.recipe.schedule", "constant", "--early_stopping.min_delta", "1"]
    run(capsys, "fit", "--config", TINY, *plateau, "--trainer.max_epochs", "2")
    last = "runs/custom_cnn/version_0/checkpoints/last.ckpt"
    run(capsys, "fit", "--ckpt_path", last, "--trainer.max_epochs", "9", "--early_stopping.patience", "2")
    summary = json.loads((workplace / "runs" / "custom_cnn" / "version_1" / "summary.json").read_text())
    assert summary["epochs"] == 3


@pytest.mark.parametrize(("monitor", "epochs"), [("val_loss", 3), ("val_accuracy", 2), ("train_accuracy", 3)])
def test_early_stopping_knows_whether_its_metric_should_rise_or_fall(workplace, capsys, monitor, epochs):
    options = [
        "--early_stopping.monitor",
        monitor,
        "--early_stopping.patience",
        "1",
        "--model.recipe.schedule",
        "constant",
    ]
    run(capsys, "fit", "--config", TINY, *options, "--trainer.callbacks", "tests.test_cli.Improve")
    assert Run(Path("runs/custom_cnn/version_0")).summary["epochs"] == epochs


@pytest.mark.parametrize(("patience", "epochs"), [(1, 2), (2, 3)])
def test_a_run_that_had_stopped_early_stops_at_once_when_it_is_resumed(workplace, capsys, caplog, patience, epochs):
    plateau = ["--model.recipe.schedule", "constant", "--early_stopping.min_delta", "1"]
    run(capsys, "fit", "--config", TINY, *plateau, "--early_stopping.patience", "1", "--trainer.max_epochs", "9")
    last = "runs/custom_cnn/version_0/checkpoints/last.ckpt"
    run(capsys, "fit", "--ckpt_path", last, "--early_stopping.patience", str(patience))
    assert Run(Path("runs/custom_cnn/version_1")).summary["epochs"] == epochs
    assert ("The run had been stopped early" in caplog.text) == (patience == 1)


def test_every_epoch_is_kept_where_the_user_adds_a_checkpoint_callback(workplace, capsys):
    keep = ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.save_top_k", "-1"]
    run(capsys, "fit", "--config", TINY, *keep, "--trainer.callbacks.filename", "{epoch}")
    kept = sorted(path.name for path in Path("runs/custom_cnn/version_0/checkpoints").iterdir())
    assert kept == ["best.ckpt", "epoch=0.ckpt", "epoch=1.ckpt", "epoch=2.ckpt", "last.ckpt"]
    twice = [*keep, "--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.save_top_k", "-1"]
    assert "more than one stateful callback of type `ModelCheckpoint`" in fail(capsys, "fit", "--config", TINY, *twice)
    assert not Path("runs/custom_cnn/version_1").exists()


@pytest.mark.parametrize("options", [(), ("--trainer.strategy", "ddp"), ("--trainer.devices", "3")])
@pytest.mark.parametrize("rank", [0, 1])
def test_processes_that_the_trainer_does_not_know_of_are_refused(workplace, capsys, monkeypatch, rank, options):
    together = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "LOCAL_WORLD_SIZE": 2}
    for name, value in {**together, "TORCHELASTIC_RUN_ID": "one"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(rank_zero_only, "rank", rank)  # Lightning sets it, for good
    message = fail(capsys, "fit", "--config", TINY, *options)
    assert "2 processes were started together, but --trainer.devices and --trainer.num_nodes make" in message
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("slurm", "known"),
    [
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train"}, True),  # a job's own script is one process
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "train", "SLURM_STEP_NUM_TASKS": "8"}, False),
    ],
)
def test_a_job_of_slurm_is_as_many_processes_as_its_step(workplace, monkeypatch, slurm, known):
    for name, value in {"SLURM_NTASKS_PER_NODE": "8", **slurm}.items():
        monkeypatch.setenv(name, value)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with nullcontext() if known else pytest.raises(UserError, match="8 processes were started together"):
        check_processes(trainer)
    together = {"WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0, "GROUP_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    for name, value in {**together, "TORCHELASTIC_RUN_ID": "one"}.items():
        monkeypatch.setenv(name, str(value))
    check_processes(trainer)  # torchrun has started this one


def test_a_run_goes_on_though_its_metrics_are_cut_off(trained, capsys):
    run_folder = Run(trained)
    whole = run_folder.metrics.read_bytes()
    for damage in (whole[:-9], whole + bytes(20), whole[:40], b"\xff\xfe"):
        run_folder.metrics.write_bytes(damage)
        run_folder.loggers()


def test_the_settings_of_a_resumed_run_start_anew_with_ckpt_path_null(trained, capsys):
    last = str(trained / "checkpoints" / "last.ckpt")
    run(capsys, "fit", "--ckpt_path", last, "--name", "resumed")
    config = "runs/resumed/version_0/config.yaml"
    assert yaml.safe_load(Path(config).read_text())["ckpt_path"] == last
    run(capsys, "fit", "--config", config, "--ckpt_path", "null", "--name", "anew")
    assert_same_weights(last, "runs/anew/version_0/checkpoints/last.ckpt")


def test_a_run_that_diverges_says_when_and_leaves_nothing_that_is_no_good(workplace, capsys):
    message = fail(capsys, "fit", "--config", TINY, "--model.recipe.learning_rate", "1e30")
    assert re.search(r"training has diverged: .* is (nan|inf) .*of epoch 1", message)
    assert not (workplace / "runs").exists()


class Improve(Callback):
    """Lets the losses fall and the training accuracy rise from epoch to epoch, and the validation accuracy stay."""

    def on_validation_end(self, trainer, pl_module):
        values = {"val_loss": -trainer.current_epoch, "val_accuracy": 0, "train_accuracy": trainer.current_epoch}
        trainer.callback_metrics.update({name: torch.tensor(float(value)) for name, value in values.items()})


class Blow(Callback):
    """Throws the network off in the last step of the second epoch."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 2:
            torch.nn.init.constant_(pl_module.head.weight, float("nan"))


@pytest.mark.parametrize("averaged", [True, False])
def test_a_run_that_diverges_later_keeps_the_last_good_checkpoint(workplace, capsys, averaged):
    blow = ["--trainer.callbacks+" if averaged else "--trainer.callbacks", "tests.test_cli.Blow"]
    assert main(["fit", "--config", TINY, *blow]) == 1
    captured = capsys.readouterr()
    assert "of epoch 2" in captured.err
    assert "Traceback" not in captured.err
    assert "validation accuracy" in captured.out
    folder = workplace / "runs" / "custom_cnn" / "version_0"
    assert json.loads((folder / "summary.json").read_text())["best_epoch"] == 1
    for name in ("best.ckpt", "last.ckpt"):
        state = torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_network_that_gives_no_finite_numbers_is_refused(trained, capsys, command):
    checkpoint = torch.load(best(trained), weights_only=True)
    checkpoint["state_dict"]["head.weight"].fill_(float("nan"))
    torch.save(checkpoint, "diverged.ckpt")
    images = ["--images", "digits"] if command == "predict" else []
    assert "not finite" in fail(capsys, command, "--ckpt_path", "diverged.ckpt", *images)
    assert not Path("predictions.csv").exists()


def test_a_run_does_not_import_tensorflow_where_it_is_installed(workplace, capsys, monkeypatch):
    for module in ("tensorflow", "tensorboard.compat.notf"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    (workplace / "tensorflow.py").write_text("io = None\n")
    monkeypatch.syspath_prepend(workplace)
    run(capsys, "fit", "--config", TINY, "--trainer.max_epochs", "1")
    importlib.reload(tensorboard.compat)  # or else it remembers what an earlier run has chosen
    assert tensorboard.compat.tf.io is not None
    assert "tensorflow" not in sys.modules


def test_a_quick_trial_leaves_nothing(workplace, capsys):
    run(capsys, "fit", "--config", TINY, "--trainer.fast_dev_run", "true")
    assert not (workplace / "runs").exists()


@pytest.mark.parametrize("root", ["digits", "photos"])
def test_the_recipe_for_photographs_is_named_where_images_look_like_them(capsys, caplog, workplace, photos, root):
    with caplog.at_level("INFO"):
        run(capsys, "fit", "--config", TINY, "--data.root", root, "--trainer.max_epochs", "1")
    assert ("configs/photographs.yaml" in caplog.text) == (root == "photos")


def test_colour_images_keep_their_channels(workplace, capsys):
    run(capsys, "fit", "--config", TINY, "--data.in_channels", "3", "--trainer.max_epochs", "1")
    model = load_classifier(workplace / "runs" / "custom_cnn" / "version_0" / "checkpoints" / "best.ckpt")
    assert model.in_channels == 3


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_no_command_scores_an_untrained_network(workplace, capsys, command):
    images = ["--images", "digits"] if command == "predict" else []
    assert "--ckpt_path" in fail(capsys, command, "--config", TINY, *images)


@pytest.mark.parametrize("how", ["flag", "config"])
def test_what_follows_from_the_data_cannot_be_set(workplace, capsys, how):
    if how == "flag":
        args = ["--model.class_names", "[x, y, z]"]
    else:
        (workplace / "more.yaml").write_text("model:\n  init_args:\n    class_names: [x, y, z]\n")
        args = ["--config", "more.yaml"]
    assert "class_names" in fail(capsys, "fit", "--config", TINY, *args)


def test_a_checkpoint_of_other_classes_is_refused(trained, capsys):
    draw_digit(1, 99).save("digits/0_digits/new.png")
    shutil.copytree("digits/0_digits", "digits/9_digits")
    for number in range(20):
        draw_digit(0, 200 + number).save(f"digits/9_digits/{number}.png")
    message = fail(capsys, "test", "--ckpt_path", best(trained))
    assert "trained on the classes 0_digits, 1_digits, 2_digits" in message
    assert "the data have 0_digits, 1_digits, 2_digits, 9_digits" in message
    shutil.rmtree("digits/9_digits")
    shutil.rmtree("digits/1_digits")
    assert "the data have 0_digits, 2_digits" in fail(capsys, "test", "--ckpt_path", best(trained))


def test_a_checkpoint_that_is_none_is_refused(workplace, capsys):
    assert "no such file" in fail(capsys, "test", "--ckpt_path", "missing.ckpt")
    (workplace / "text.ckpt").write_text("text")
    assert "text.ckpt: not written by torch.save" in fail(capsys, "test", "--ckpt_path", "text.ckpt")
    assert "is a directory" in fail(capsys, "test", "--ckpt_path", "digits")
    torch.save({"weights": torch.zeros(3)}, "other.ckpt")
    assert "not a checkpoint of a DigitDoodle network" in fail(capsys, "test", "--ckpt_path", "other.ckpt")


def test_a_truncated_checkpoint_is_refused(trained, capsys):
    whole = (trained / "checkpoints" / "best.ckpt").read_bytes()
    (trained / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "cut.ckpt: not written by torch.save, or cut off" in fail(
        capsys, "test", "--ckpt_path", str(trained / "cut.ckpt")
    )


class Intruder:
    def __reduce__(self):
        return open, ("intruder was here", "w")


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
def test_a_checkpoint_that_would_run_code_is_refused(trained, capsys, command):
    checkpoint = torch.load(best(trained), weights_only=True)
    torch.save({**checkpoint, "extra": Intruder()}, "evil.ckpt")
    args = {"fit": ["--config", TINY], "predict": ["--images", "digits"]}.get(command, [])
    assert "could run code" in fail(capsys, command, "--ckpt_path", "evil.ckpt", *args)
    assert not (trained.parents[2] / "intruder was here").exists()


def test_a_checkpoint_cannot_choose_what_is_imported(trained, capsys, monkeypatch):
    checkpoint = torch.load(best(trained), weights_only=True)
    (trained.parents[2] / "evil.py").write_text("open('intruder was here', 'w')\n")
    monkeypatch.syspath_prepend(trained.parents[2])
    torch.save({**checkpoint, "model_class": "evil.Model"}, "evil.ckpt")
    assert "made with evil.Model" in fail(capsys, "test", "--ckpt_path", "evil.ckpt")
    torch.save({**checkpoint, "data_class": "evil.Data"}, "evil.ckpt")
    assert "made with evil.Data" in fail(capsys, "test", "--ckpt_path", "evil.ckpt")
    assert not (trained.parents[2] / "intruder was here").exists()


def test_weights_that_do_not_fit_are_refused(trained, capsys):
    assert "don't fit this CustomCNN" in fail(capsys, "test", "--ckpt_path", best(trained), "--model.width", "12")


def test_unreadable_images_end_prediction_before_anything_is_written(trained, capsys, workplace):
    (workplace / "digits" / "0_digits" / "3.png").write_text("text")
    message = fail(capsys, "predict", "--ckpt_path", best(trained), "--images", "digits/0_digits")
    assert "digits/0_digits/3.png: not an image of a format that is read" in message
    assert not (workplace / "predictions.csv").exists()
    message = fail(capsys, "predict", "--ckpt_path", best(trained), "--images", "nowhere.png")
    assert "nowhere.png: no such file or folder" in message
    (workplace / "empty").mkdir()
    assert "no images in this folder" in fail(capsys, "predict", "--ckpt_path", best(trained), "--images", "empty")


def test_an_output_that_cannot_be_written_is_a_clear_error(trained, capsys):
    args = ("--images", "digits/0_digits", "--output", "no/such/folder/out.csv")
    assert "no/such/folder/out.csv: no such folder" in fail(capsys, "predict", "--ckpt_path", best(trained), *args)


def test_an_output_that_is_a_link_or_no_file_stays_what_it_is(trained, capsys):
    Path("link.csv").symlink_to("linked.csv")
    run(capsys, "predict", "--ckpt_path", best(trained), "--images", "digits/0_digits", "--output", "link.csv")
    assert Path("link.csv").is_symlink()
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    run(capsys, "predict", "--ckpt_path", best(trained), "--images", "digits/0_digits", "--output", "pipe")
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)
    assert os.read(reader, 2**16) == Path("linked.csv").read_bytes()
    os.close(reader)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.root", "nowhere"], "nowhere: no such file or directory"),
        (["--data.root", "digits/0_digits"], "no class folders"),
        (["--data.classes", "[0_digits, 7_digits]"], "unknown class 7_digits"),
        (["--data.val_fraction", "2"], "val_fraction must lie in (0, 1), got 2.0"),
        (["--data.augmentation.degrees", "-5"], "degrees must lie in [0, 180], got -5.0"),
        (["--model.recipe.learning_rate", "0"], "learning_rate must be above 0"),
        (["--model.recipe.learning_rate", ".nan"], "learning_rate must be above 0, got nan"),
        (["--model.recipe.weight_decay", "-0.1"], "weight_decay must be at least 0, got -0.1"),
        (["--model.recipe.label_smoothing", "1"], "label_smoothing must lie in [0, 1)"),
        (["--model.width", "wide"], "width"),
        (["--model.wdth", "3"], "wdth"),
        (["--model", "NoSuchCNN"], "NoSuchCNN"),
        (["--trainer.default_root_dir", "digits/0_digits/0.png"], "not a directory"),
        (["--trainer.accelerator", "abacus"], "invalid accelerator name"),
        (["--trainer.max_epochs", "-7"], "max_epochs"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--early_stopping.monitor", "val_acc"], "no metric val_acc; there are train_loss, train_accuracy"),
    ],
)
def test_bad_input_is_one_clear_line(workplace, capsys, args, message):
    assert message in fail(capsys, "fit", "--config", TINY, *args)
    assert not (workplace / "runs").exists()


def test_an_unknown_option_is_told_without_a_list_of_all_others(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--nonsense", "3"])
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "usage: python -m lightning_modules fit [options]"
    assert told[-1] == "error: unrecognized arguments: --nonsense 3"
    assert len(told) == 3


def test_a_broken_image_stops_training_before_it_leaves_anything(workplace, capsys):
    (workplace / "digits" / "0_digits" / "3.png").write_bytes(b"")
    assert "0_digits/3.png: empty file" in fail(capsys, "fit", "--config", TINY)
    assert not list((workplace / "runs").rglob("*.ckpt"))
    run(capsys, "fit", "--config", TINY, "--data.on_unreadable", "skip", "--trainer.max_epochs", "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--data.batch_size", "48", "--trainer.max_epochs", "4"],
        ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1"],
        ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2"],
        ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "3"],
        ["--trainer.max_steps", "4", "--trainer.max_epochs", "2"],
        ["--trainer.fast_dev_run", "4", "--data.batch_size", "4"],
        ["--trainer.limit_train_batches", "4", "--data.batch_size", "4", "--trainer.max_epochs", "1"],
    ],
)
def test_a_one_cycle_schedule_may_be_of_any_length(workplace, capsys, options):
    run(capsys, "fit", "--config", TINY, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.max_epochs", "-1", "--trainer.max_time", "00:00:01:00"], "which has no end: give --trainer.max"),
        (["--trainer.limit_train_batches", "0"], "there is nothing to train"),
        (["--trainer.limit_train_batches", "0", "--model.recipe.schedule", "constant"], "there is nothing to train"),
        (["--trainer.max_steps", "0"], "there is nothing to train"),
    ],
)
def test_a_run_without_a_step_or_without_an_end_is_one_clear_line(workplace, capsys, options, message):
    assert message in fail(capsys, "fit", "--config", TINY, *options)
    assert not (workplace / "runs").exists()


def test_a_run_may_end_by_time_alone_where_the_learning_rate_is_constant(workplace, capsys):
    options = ["--trainer.max_epochs", "-1", "--trainer.max_time", "00:00:00:01", "--model.recipe.schedule", "constant"]
    assert "validation accuracy" in run(capsys, "fit", "--config", TINY, *options)


def test_files_that_are_passed_over_are_named_by_training_and_prediction(trained, capsys, caplog):
    Path("digits/0_digits/3.png").rename("digits/0_digits/3.psd")
    Path("digits/notes.txt").touch()
    shutil.copy("digits/1_digits/3.png", "digits/loose.png")
    with caplog.at_level("INFO"):
        run(capsys, "fit", "--config", TINY, "--trainer.max_epochs", "1")
        run(capsys, "predict", "--ckpt_path", best(trained), "--images", "digits/0_digits")
    psd = "1 .psd files, which are not read as images"
    assert caplog.text.count("passed over") == 2
    for part in ("(loose.png)", "(notes.txt)", f"{psd} (0_digits/3.psd)", f"digits/0_digits: passed over {psd}"):
        assert part in caplog.text


ODD = ["07", "7", "yes", "no", "1.0", "1e3", "null", "0x1F", "1:30", "~"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["option", "option=", "long option", "config", "block"])
def test_class_names_are_text(workplace, capsys, how):
    for number, name in enumerate(ODD):
        Path("odd", name).mkdir(parents=True)
        for seed in range(3):
            draw_digit(number % 3, 100 * number + seed).save(f"odd/{name}/{seed}.png")
    names = f"[{', '.join(ODD)}]"
    init = {"config": f"classes: {names}", "block": "classes:" + "".join(f"\n      - {name}" for name in ODD)}
    if how in init:
        Path("more.yaml").write_text(f"data:\n  init_args:\n    {init[how]}\n")
    args = {
        "option": ["--data.classes", names],
        "option=": [f"--data.classes={names}"],
        "long option": ["--data.init_args.classes", names],
    }.get(how, ["--config", "more.yaml"])
    short = ["--data.root", "odd", "--trainer.max_epochs", "1", "--name", "07"]
    run(capsys, "fit", "--config", TINY, *short, *args)
    folder = workplace / "runs" / "07" / "version_0"
    assert load_classifier(folder / "checkpoints" / "best.ckpt").class_names == ODD
    if how == "option":
        assert "test_accuracy/07 " in run(capsys, "test", "--ckpt_path", best(folder))
        run(capsys, "fit", "--config", str(folder / "config.yaml"))
        again = folder.with_name("version_1")
        assert load_classifier(again / "checkpoints" / "best.ckpt").class_names == ODD


@pytest.mark.slow
@pytest.mark.parametrize("how", ["option", "config", "block"])
def test_class_names_may_have_any_signs(workplace, capsys, how):
    names = ["\N{GRINNING FACE}", "\N{MATHEMATICAL DOUBLE-STRUCK CAPITAL A}", "é"]
    for digit, name in enumerate(names):
        Path(f"digits/{digit}_digits").rename(f"digits/{name}")
    init = {"config": f"classes: [{', '.join(names)}]", "block": f"classes: [{names[0]}, {names[1]}, '{names[2]}']"}
    Path("more.yaml").write_text(f"data:\n  init_args:\n    {init.get(how, 'root: digits')}\n", encoding="utf-8")
    args = ["--data.classes", f"[{', '.join(names)}]"] if how == "option" else []
    run(capsys, "fit", "--config", TINY, "--config", "more.yaml", "--trainer.max_epochs", "1", *args)
    folder = workplace / "runs" / "custom_cnn" / "version_0"
    assert load_classifier(folder / "checkpoints" / "best.ckpt").class_names == names
    if how == "option":
        run(capsys, "validate", "--ckpt_path", best(folder))
        run(capsys, "predict", "--ckpt_path", best(folder), "--images", "digits")
        with Path("predictions.csv").open(encoding="utf-8") as file:
            assert {row["label"] for row in csv.DictReader(file)} <= set(names)
        run(capsys, "fit", "--config", str(folder / "config.yaml"))
        run(capsys, "fit", "--ckpt_path", str(folder / "checkpoints" / "last.ckpt"))


def test_class_names_may_be_written_in_any_style_of_yaml(workplace, capsys):
    styles = "\n      - |-\n        07\n      - '1e3'\n      - \"no\"\n      - 1:30"
    Path("more.yaml").write_text(f"data:\n  init_args:\n    classes: &all{styles}\n")
    classes = settings_of(capsys, "--config", TINY, "--config", "more.yaml")["data"]["init_args"]["classes"]
    assert classes == ["07", "1e3", "no", "1:30"]


def test_a_class_can_be_added_to_those_of_a_config(workplace, capsys):
    Path("more.yaml").write_text("data:\n  init_args:\n    classes: [2_digits]\n")
    args = ["--config", TINY, "--config", "more.yaml", "--data.classes+", "0_digits"]
    assert settings_of(capsys, *args)["data"]["init_args"]["classes"] == ["2_digits", "0_digits"]


def test_all_classes_are_kept_where_none_is_named(capsys):
    assert settings_of(capsys, "--config", TINY, "--data.classes", "null")["data"]["init_args"]["classes"] is None
    assert "classes" in fail(capsys, "fit", "--config", TINY, "--data.classes", "[0_digits")


@pytest.fixture
def split_by_others(workplace):
    """``split/`` with train/, Valid/ and test/, and 12, 6 and 6 digits in them, one of which stands on two sides."""
    for subset, seeds in (("train", range(4)), ("Valid", range(4, 6)), ("test", range(6, 8))):
        for digit in range(3):
            folder = workplace / "split" / subset / f"{digit}_digits"
            folder.mkdir(parents=True)
            for seed in seeds:
                shutil.copy(f"digits/{digit}_digits/{seed}.png", folder)
    shutil.copy("digits/0_digits/0.png", "split/Valid/0_digits/4.png")
    return workplace / "split"


def subsets_of(run_folder):
    with (run_folder / "split.csv").open() as file:
        return {row["file"]: row["subset"] for row in csv.DictReader(file)}


def test_a_folder_that_was_split_by_others_is_taken_as_it_is(split_by_others, workplace, capsys, caplog):
    with caplog.at_level("INFO"):
        run(capsys, "fit", "--config", TINY, "--data.root", "split", "--trainer.max_epochs", "1")
    assert "Trained on the images of split/train, validated on split/Valid, tested on split/test." in caplog.text
    assert "1 validation images are copies of training images" in caplog.text
    folder = workplace / "runs" / "custom_cnn" / "version_0"
    expected = {path.relative_to("split").as_posix() for path in Path("split").glob("[tV][ra]*/*/*.png")}
    subsets = subsets_of(folder)
    assert set(subsets) == expected
    assert all((subset == "val") == name.startswith("Valid/") for name, subset in subsets.items())
    assert load_classifier(Path(best(folder))).class_names == ["0_digits", "1_digits", "2_digits"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["val_images"] == 6
    assert f"{summary['val_accuracy']:.4f}" in run(capsys, "validate", "--ckpt_path", best(folder))
    assert "test_accuracy" in run(capsys, "test", "--ckpt_path", best(folder))
    data = Run(folder).load_data()
    assert sorted(data.val_set.names) == sorted(name for name, subset in subsets.items() if subset == "val")


def test_without_a_validation_folder_the_split_is_made_of_the_training_images(split_by_others, workplace, capsys):
    shutil.rmtree("split/Valid")
    run(capsys, "fit", "--config", TINY, "--data.root", "split", "--trainer.max_epochs", "1")
    subsets = subsets_of(workplace / "runs" / "custom_cnn" / "version_0")
    assert len(subsets) == 12
    assert list(subsets.values()).count("val") == 3  # one of each class
    assert all(name.startswith("train/") and (split_by_others / name).is_file() for name in subsets)
    run(capsys, "validate", "--ckpt_path", best(workplace / "runs" / "custom_cnn" / "version_0"))


def test_files_that_lie_about_do_not_hide_that_a_folder_was_split(split_by_others, capsys, caplog):
    for name in ("README.txt", "train/labels.csv", "train/Thumbs.db", "Valid/.DS_Store", "test/notes.md"):
        (split_by_others / name).touch()
    with caplog.at_level("INFO"):
        run(capsys, "fit", "--config", TINY, "--data.root", "split", "--trainer.max_epochs", "1")
    assert "Trained on the images of split/train, validated on split/Valid, tested on split/test." in caplog.text


def test_another_folder_can_be_validated_on(split_by_others, workplace, capsys):
    shutil.move("split/Valid", "elsewhere")
    options = ["--data.root", "split/train", "--data.val_root", "elsewhere", "--trainer.max_epochs", "1"]
    run(capsys, "fit", "--config", TINY, *options)
    subsets = subsets_of(workplace / "runs" / "custom_cnn" / "version_0")
    assert subsets["../../elsewhere/1_digits/5.png"] == "val"
    assert list(subsets.values()).count("val") == 6
    shutil.rmtree("elsewhere/2_digits")
    message = "elsewhere lacks the class folder 2_digits: it needs the classes of split/train, 0_digits, 1_digits, 2_d"
    assert message in fail(capsys, "fit", "--config", TINY, *options)
    assert "nowhere: no such file" in fail(capsys, "fit", "--config", TINY, "--data.val_root", "nowhere")
    same = fail(capsys, "fit", "--config", TINY, "--data.val_root", "digits/../digits")
    assert "val_root digits/../digits is the folder that is trained on" in same


def test_a_class_may_be_called_train(workplace, capsys):
    shutil.copytree("digits/0_digits", "vehicles/train")
    shutil.copytree("digits/1_digits", "vehicles/test")
    run(capsys, "fit", "--config", TINY, "--data.root", "vehicles", "--trainer.max_epochs", "1")
    model = load_classifier(Path(best(workplace / "runs" / "custom_cnn" / "version_0")))
    assert model.class_names == ["test", "train"]


@pytest.mark.slow
def test_a_run_from_before_networks_had_a_folder_is_scored_and_resumed(trained, capsys):
    def flatten(init_args):
        return {**{name: value for name, value in init_args.items() if name != "recipe"}, **init_args["recipe"]}

    for name in ("best", "last"):
        path = trained / "checkpoints" / f"{name}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["model_class"] = "lightning_modules.custom_cnn.CustomCNN"
        checkpoint["hyper_parameters"] = flatten(checkpoint["hyper_parameters"])
        torch.save(checkpoint, path)
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["model"] = {
        "class_path": "lightning_modules.custom_cnn.CustomCNN",
        "init_args": flatten(config["model"]["init_args"]),
    }
    (trained / "config.yaml").write_text(yaml.safe_dump(config))
    assert "test_accuracy" in run(capsys, "test", "--ckpt_path", best(trained))
    run(capsys, "predict", "--ckpt_path", best(trained), "--images", "digits")
    run(capsys, "fit", "--ckpt_path", str(trained / "checkpoints" / "last.ckpt"))
    run(capsys, "fit", "--config", str(trained / "config.yaml"))
    assert (trained.with_name("version_1") / "summary.json").exists()
    again = trained.with_name("version_2") / "checkpoints" / "last.ckpt"
    assert_same_weights(trained / "checkpoints" / "last.ckpt", again)


def test_the_names_that_options_had_are_understood(capsys):
    chosen = settings_of(capsys, "--config", TINY, "--model.learning_rate", "0.05", "--model.optimizer=adamw")
    recipe = chosen["model"]["init_args"]["recipe"]
    assert (recipe["learning_rate"], recipe["optimizer"], recipe["label_smoothing"]) == (0.05, "adamw", 0.1)
