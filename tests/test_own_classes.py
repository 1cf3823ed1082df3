"""Optimisers, callbacks and datamodules that aren't ours."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from datamodules.dataset import Batch
from lightning_modules.networks import CustomCNN
from lightning_modules.recipe import Recipe
from tests.conftest import TINY
from tests.test_cli import assert_same_weights, best, fail, run

OPTIMIZERS = {
    "RAdam": ["--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "3"],
    "AdamW": ["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1", "--lr_scheduler.gamma", "0.5"],
    "SGD": [
        "--lr_scheduler",
        "ReduceLROnPlateau",
        "--lr_scheduler.monitor",
        "val_loss",
        "--lr_scheduler.patience",
        "0",
        "--lr_scheduler.threshold",
        "1",  # no epoch is better than the first: the rate falls after each
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_any_optimiser_and_schedule_trains_and_resumes_to_the_same_weights(workplace, capsys, optimizer):
    recipe = ["--optimizer", optimizer, "--optimizer.lr", "0.002", *OPTIMIZERS[optimizer]]
    fit = ["fit", "--config", TINY, *recipe]
    run(capsys, *fit, "--name", "whole")
    run(capsys, *fit, "--name", "part", "--trainer.max_epochs", "2")
    last = {name: f"runs/{name}/version_0/checkpoints/last.ckpt" for name in ("whole", "part", "rest")}
    run(capsys, "fit", "--ckpt_path", last["part"], "--name", "rest", "--trainer.max_epochs", "3")
    assert_same_weights(last["whole"], last["rest"])
    state = torch.load(last["whole"], weights_only=True)
    assert state["optimizer_init"]["optimizer"]["class_path"].endswith(f".{optimizer}")
    assert len(state["lr_schedulers"]) == 1
    assert "test_accuracy" in run(capsys, "test", "--ckpt_path", best(Path("runs/whole/version_0")))
    for other in (["--optimizer", "Adam"], ["--optimizer.lr", "0.5"]):
        message = fail(capsys, "fit", "--ckpt_path", last["part"], "--trainer.max_epochs", "3", *other)
        assert "by which a resumed run goes on" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "Adam", "--model.recipe.learning_rate", "0.5"], "--optimizer and model.recipe.learning_rate"),
        (
            ["--optimizer", "Adam", "--model.recipe.schedule", "constant"],
            "both say how to train",
        ),
        (["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "1"], "--lr_scheduler is for an --optimizer"),
        (["--optimizer", "NoSuchOptimizer"], "NoSuchOptimizer"),
        (
            ["--optimizer", "SGD", "--optimizer.nesterov", "true"],
            "--optimizer, --lr_scheduler: Nesterov momentum requires",
        ),
        (["--optimizer", "SGD", "--optimizer.lr", "-1"], "--optimizer, --lr_scheduler: Invalid learning rate: -1"),
        (
            ["--model", "MobileNetV2", "--model.backbone_learning_rate", "1e-5", "--optimizer", "SGD"],
            "--optimizer and model.backbone_learning_rate (1e-05) both say how to train",
        ),
    ],
)
def test_an_optimiser_beside_a_recipe_is_one_clear_line(workplace, capsys, options, message):
    assert message in fail(capsys, "fit", "--config", TINY, *options)
    assert not (workplace / "runs").exists()


def test_an_optimiser_takes_the_place_of_the_recipe_of_a_resumed_run_in_no_silence(trained, capsys):
    last = str(trained / "checkpoints" / "last.ckpt")
    message = fail(capsys, "fit", "--ckpt_path", last, "--optimizer", "Adam")
    assert "was trained with the recipe's optimiser" in message


@pytest.mark.slow
def test_a_callback_with_an_enumeration_among_its_settings_is_saved(workplace, capsys):
    timer = ["--trainer.callbacks+", "Timer", "--trainer.callbacks.duration", "00:01:00:00"]
    run(capsys, "fit", "--config", TINY, *timer, "--trainer.max_epochs", "1")
    config = yaml.safe_load(Path("runs/custom_cnn/version_0/config.yaml").read_text())
    assert config["trainer"]["callbacks"][-1]["init_args"]["interval"] == "step"
    run(capsys, "fit", "--config", "runs/custom_cnn/version_0/config.yaml")


class Pairs(LightningDataModule):
    """Images and labels as most of PyTorch's data sets have them.

    Args:
        whole: Yield batches of ours.
        count: How many images.
    """

    class_names = ("dark", "bright")
    in_channels = 1
    image_size = 12

    def __init__(self, whole: bool = False, count: int = 32) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.whole = whole
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count) % 2
        self.images = torch.rand(count, 1, 12, 12, generator=generator) / 2 + self.labels.view(-1, 1, 1, 1) / 2

    def train_dataloader(self):
        def collate(items):
            images, labels = (torch.stack(parts) for parts in zip(*items, strict=True))
            return Batch(images, labels, torch.arange(len(labels))) if self.whole else (images, labels)

        return DataLoader(TensorDataset(self.images, self.labels), 8, collate_fn=collate)

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.parametrize("whole", ["true", "false"])
def test_a_datamodule_that_is_none_of_ours_gets_its_report(workplace, capsys, whole):
    fit = ["fit", "--data", "tests.test_own_classes.Pairs", "--data.whole", whole, "--trainer.max_epochs", "2"]
    table = run(capsys, *fit, "--trainer.accelerator", "cpu")
    folder = workplace / "runs" / "custom_cnn" / "version_0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["val_images"] == 32
    assert f"({32 - summary['val_mistakes']} of 32)" in table
    for name in ("accuracy", "confusion_matrix", "mistakes"):
        assert (folder / f"{name}.png").stat().st_size > 0
    for command in ("validate", "test"):
        assert f"{summary['val_accuracy']:.4f}" in run(capsys, command, "--ckpt_path", best(folder))


class Unsaid(Pairs):
    """A datamodule that doesn't keep what it was made with."""

    def __init__(self, note: object = None) -> None:
        super().__init__()
        self.hparams["note"] = object()


def test_data_that_the_checkpoint_cannot_name_must_be_named(workplace, capsys):
    data = ["--data", "tests.test_own_classes.Unsaid"]
    run(capsys, "fit", *data, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu")
    checkpoint = best(workplace / "runs" / "custom_cnn" / "version_0")
    assert "doesn't say what it was trained on: name it with --data" in fail(capsys, "test", "--ckpt_path", checkpoint)
    assert "test_accuracy" in run(capsys, "test", "--ckpt_path", checkpoint, *data)


class Words(LightningDataModule):
    """Something that no classifier can be trained on."""

    class_names = ("a", "b")
    in_channels = 1
    image_size = 12

    def train_dataloader(self):
        return DataLoader(["some", "words"], 2)


def test_a_datamodule_that_yields_something_else_is_one_clear_line(workplace, capsys):
    message = fail(capsys, "fit", "--data", "tests.test_own_classes.Words", "--trainer.accelerator", "cpu")
    assert "a datamodule must yield a Batch, or images and labels, got list" in message


class Odd(CustomCNN):
    """A network with an argument that no checkpoint can keep."""

    def __init__(self, class_names: list[str], in_channels: int, image_size: int, place: Path = Path("here")) -> None:
        super().__init__(class_names, in_channels, image_size)


def test_a_network_whose_arguments_are_not_plain_is_refused_at_once(workplace, capsys):
    message = fail(capsys, "fit", "--config", TINY, "--model", "tests.test_own_classes.Odd")
    assert "Odd: the argument place is a PosixPath; a checkpoint keeps plain values alone" in message


class Rated(CustomCNN):
    """A network with a ``learning_rate`` of its own, beside the recipe's, and an optimiser with one group."""

    def __init__(
        self,
        class_names: list[str],
        in_channels: int,
        image_size: int,
        learning_rate: float = 0.05,
        recipe: Recipe = Recipe(learning_rate=0.2),
    ) -> None:
        super().__init__(class_names, in_channels, image_size, width=8, recipe=recipe)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams["learning_rate"])


@pytest.mark.parametrize("named", [["--model", "X"], ["--model=X"], ["--config", "mine.yaml"]])
def test_options_of_ones_own_network_keep_their_names(workplace, capsys, named):
    Path("mine.yaml").write_text("model: {class_path: tests.test_own_classes.Rated}")
    named = [part.replace("X", "tests.test_own_classes.Rated") for part in named]
    run(capsys, "fit", "--config", TINY, *named, "--model.learning_rate", "0.025", "--trainer.max_epochs", "1")
    config = yaml.safe_load(Path("runs/test_own_classes/version_0/config.yaml").read_text())
    assert config["model"]["init_args"]["learning_rate"] == 0.025


def test_a_range_test_of_an_optimiser_of_ones_own(workplace, capsys):
    options = ["--model", "tests.test_own_classes.Rated", "--trainer.max_epochs", "1", "--tune", "lr"]
    run(capsys, "fit", "--config", TINY, *options)
    assert Path("runs/test_own_classes/version_0/learning_rate.png").stat().st_size > 0


def test_a_checkpoint_from_within_an_epoch_owes_a_plateau_schedule_nothing(workplace, capsys):
    plateau = OPTIMIZERS["SGD"]
    keep = ["--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "4"]
    fit = ["fit", "--config", TINY, "--optimizer", "SGD", "--optimizer.lr", "0.002", *plateau, *keep]
    run(capsys, *fit, "--trainer.callbacks.filename", "within", "--trainer.max_epochs", "2")
    within = torch.load("runs/custom_cnn/version_0/checkpoints/within.ckpt", weights_only=True)
    assert within["epoch"] == 1
    assert not within["callbacks"].get("PlateauSchedules")
    last = torch.load("runs/custom_cnn/version_0/checkpoints/last.ckpt", weights_only=True)
    assert "val_loss" in last["callbacks"]["PlateauSchedules"]
