"""A learning rate and a batch size are found before training."""

import signal
from pathlib import Path

import pytest
import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook

from lightning_modules.cli import main
from lightning_modules.networks import CustomCNN
from tests.conftest import TINY, start
from tests.test_cli import assert_same_weights, fail, run
from tests.test_mobilenetv2 import SMALL, backbone, weights  # noqa: F401 - fixtures
from tests.test_reader import FIT as READER

FIT = ("--config", TINY, "--trainer.max_epochs", "1")
ONE_CYCLE = (
    *("--lr_scheduler", "torch.optim.lr_scheduler.OneCycleLR"),
    *("--lr_scheduler.max_lr", "0.1", "--lr_scheduler.total_steps", "9"),
)


class Hopeless(CustomCNN):
    """Its loss is not finite whatever it learns."""

    def forward_head(self, features):
        return super().forward_head(features) * torch.inf


def last(run_folder):
    return run_folder / "checkpoints" / "last.ckpt"


def tuned(caplog, *options, name="custom_cnn"):
    """Train with what is found; returns the settings, what was said, and the folder of the run."""
    with caplog.at_level("INFO"):
        assert main(["fit", *options]) == 0
    (folder,) = Path("runs", name).iterdir()
    assert sorted(path.name for path in Path().glob("**/.*")) == []
    return yaml.safe_load((folder / "config.yaml").read_text()), caplog.text, folder


def assert_repeats(capsys, folder):
    """A run is the one that its config gives."""
    run(capsys, "fit", "--config", str(folder / "config.yaml"))
    assert_same_weights(last(folder), last(folder.parent / "version_1"))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("optimizer", "lowest", "highest"), [("sgd", 0.01, 1), ("adamw", 1e-3, 0.1)])
def test_the_run_has_the_learning_rate_that_was_found_and_its_config_repeats_it(
    workplace, capsys, caplog, optimizer, lowest, highest, precision
):
    options = ("--model.recipe.optimizer", optimizer, "--trainer.precision", precision)
    config, said, folder = tuned(caplog, *FIT, *options, "--tune", "lr")
    rate = config["model"]["init_args"]["recipe"]["learning_rate"]
    assert lowest < rate < highest
    assert f"Learning rate {rate:g}, found by a range test." in said
    assert config["tune"] is None
    assert (folder / "learning_rate.png").stat().st_size > 0
    assert_repeats(capsys, folder)
    assert not (folder.parent / "version_1" / "learning_rate.png").exists()


@pytest.mark.slow
def test_the_batch_size_is_the_largest_that_the_training_set_fills_and_comes_first(workplace, capsys, caplog):
    config, said, folder = tuned(caplog, *FIT, "--tune", "batch_size,lr")
    assert config["data"]["init_args"]["batch_size"] == 32  # of 48 images
    assert said.index("Batch size 32, found by what fits into memory.") < said.index("Learning rate ")
    assert_repeats(capsys, folder)


@pytest.mark.slow
def test_an_optimizer_that_is_chosen_gets_the_learning_rate(workplace, capsys, caplog):
    chosen = ("--optimizer", "torch.optim.SGD", "--optimizer.momentum", "0.9", "--optimizer.lr", "0.001")
    config, _, folder = tuned(caplog, *FIT, *chosen, "--tune", "lr")
    assert config["optimizer"]["init_args"]["lr"] > 0.002
    assert config["model"]["init_args"]["recipe"]["learning_rate"] == 0.2  # as it was
    assert_repeats(capsys, folder)


@pytest.mark.slow
def test_a_backbone_keeps_its_share_of_the_learning_rate_also_while_it_is_looked_for(workplace, weights, caplog):  # noqa: F811
    seen = []

    def note(optimizer, args, kwargs):
        if len(optimizer.param_groups) == 4:  # not that of the calibration
            seen.append([group["lr"] for group in optimizer.param_groups])

    handle = register_optimizer_step_post_hook(note)
    rates = ("--model.backbone_learning_rate", "0.0001", "--model.recipe.learning_rate", "0.001")
    try:
        config, _, _ = tuned(caplog, *FIT, *SMALL, *weights, *rates, "--tune", "lr", name="mobilenetv2")
    finally:
        handle.remove()
    model = config["model"]["init_args"]
    assert model["recipe"]["learning_rate"] != 0.001
    assert model["backbone_learning_rate"] == pytest.approx(model["recipe"]["learning_rate"] / 10, rel=0.01)
    assert len(seen) > 50
    for head, plain_head, body, plain_body in seen:
        assert head == plain_head == pytest.approx(10 * body, rel=0.01) == pytest.approx(10 * plain_body, rel=0.01)


@pytest.mark.slow
def test_a_reader_is_tuned_alike(workplace, caplog):
    config, _, folder = tuned(caplog, *READER, "--trainer.max_epochs", "1", "--tune", "lr", name="tiny")
    assert 1e-4 < config["model"]["init_args"]["recipe"]["learning_rate"] < 0.1
    assert (folder / "learning_rate.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.fast_dev_run", "true"], "--tune lr: a trial leaves no run folder to write what is found into"),
        (["--trainer.barebones", "true"], "--tune lr: a trial leaves no run folder"),
        (["--data.folds", "3"], "tune a single run, as with --data.fold 1"),
        (["--trainer.devices", "2"], "--tune works in one process on one device: add --trainer.devices 1"),
        (["--trainer.limit_train_batches", "0"], "there is nothing to train"),
        (["--model", "tests.test_tune.Hopeless"], "the loss falls at no learning rate from 1e-07 to 10"),
        (["--tune", "everything"], "everything"),
        (
            ["--optimizer", "torch.optim.SGD", *ONE_CYCLE],
            "OneCycleLR has a max_lr of its own",
        ),
    ],
)
def test_what_cannot_be_tuned_is_one_clear_line_and_leaves_nothing(workplace, capsys, options, message):
    assert message in fail(capsys, "fit", *FIT, "--tune", "lr", *options)
    assert not Path("runs").exists()


def test_a_resumed_run_is_not_tuned(trained, capsys):
    message = fail(capsys, "fit", "--ckpt_path", str(last(trained)), "--tune", "batch_size")
    assert "--tune batch_size: a resumed run goes on with the settings it has" in message


@pytest.mark.slow
def test_ctrl_c_while_tuning_leaves_nothing(workplace):
    process = start("fit", *FIT, "--model.width", "32", "--tune", "lr")
    assert process.stderr is not None
    assert any("Finding best initial lr" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert not Path("runs").exists()
