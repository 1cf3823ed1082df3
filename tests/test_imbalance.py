"""Data with few images of some classes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from datamodules import ImageFolderDataModule
from datamodules.dataset import OUTLIER, Batch
from datamodules.loading import BalancedSampler, repeat_rare
from lightning_modules.networks import CustomCNN
from lightning_modules.recipe import Recipe
from tests.conftest import TINY, start
from tests.test_cli import assert_same_weights, fail, run
from tests.test_processes import DDP

LABELS = np.repeat([0, 1, 2], [200, 3, 7])


@pytest.fixture
def unequal(workplace):
    """Twenty images of two classes, two of the third, of which one is trained on."""
    for path in list(Path("digits/1_digits").iterdir())[2:]:
        path.unlink()
    return workplace


def summary_of(name, version=0):
    return json.loads(Path(f"runs/{name}/version_{version}/summary.json").read_text())


def test_every_class_has_its_share_of_an_epoch_and_every_image_of_a_rare_one():
    rows = repeat_rare(LABELS)
    sampler = BalancedSampler(LABELS[rows], 0, 1, shuffle_seed=1)
    drawn = rows[sampler.indices()]
    assert len(sampler) == len(drawn) == len(LABELS)
    assert np.bincount(LABELS[drawn]).tolist() == [70, 70, 70]
    times = np.bincount(drawn, minlength=len(LABELS))
    assert set(times[LABELS == 0]) == {0, 1}
    assert set(times[LABELS == 1]) == {23, 24}
    assert set(times[LABELS == 2]) == {10}
    sampler.set_epoch(1)
    assert set(rows[sampler.indices()]) != set(drawn)  # others of the common class


def test_processes_share_an_epoch_that_the_seed_decides():
    rows = repeat_rare(LABELS)
    whole = BalancedSampler(LABELS[rows], 0, 1, shuffle_seed=1).indices()
    parts = [BalancedSampler(LABELS[rows], rank, 3, shuffle_seed=1).indices() for rank in range(3)]
    assert sorted(np.concatenate(parts)) == sorted(whole)
    np.testing.assert_array_equal(whole[1::3], parts[1])
    assert set(BalancedSampler(LABELS[rows], 0, 1, shuffle_seed=2).indices()) != set(whole)


def test_an_image_that_is_drawn_again_is_augmented_anew(unequal):
    data = ImageFolderDataModule("digits", image_size=20, batch_size=99, balance=True)
    data.prepare_data()
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert torch.bincount(batch.labels).tolist() == [11, 11, 11]
    rare = batch.labels == 1
    assert len(batch.images[rare].unique(dim=0)) == 1
    assert len(data.augment(batch, epoch=0).images[rare].unique(dim=0)) == 11


def test_weights_count_an_image_as_its_class_says():
    model = CustomCNN(["a", "b"], 1, 28, recipe=Recipe(class_weights=[1, 5]))
    model.class_weights = torch.tensor([1.0, 5.0])
    outputs, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, OUTLIER])
    loss = model.training_loss(outputs, Batch(torch.empty(4), labels, labels))
    each = [nn.functional.cross_entropy(outputs[row], labels[row]) for row in range(3)]
    expected = (each[0] + 5 * each[1] + 5 * each[2] - outputs[3].log_softmax(0).mean()) / 4
    torch.testing.assert_close(loss, expected)


@pytest.mark.slow
def test_automatic_weights_are_those_of_the_training_images(unequal, capsys):
    run(capsys, "fit", "--config", TINY, "--model.class_weights", "auto", "--name", "auto")
    numbers = [33 / (3 * count) for count in (16, 1, 16)]
    run(capsys, "fit", "--config", TINY, "--model.recipe.class_weights", str(numbers), "--name", "numbers")
    run(capsys, "fit", "--config", TINY, "--name", "none")
    last = {name: f"runs/{name}/version_0/checkpoints/last.ckpt" for name in ("auto", "numbers", "none")}
    assert_same_weights(last["auto"], last["numbers"])
    with pytest.raises(AssertionError):
        assert_same_weights(last["auto"], last["none"])
    assert "val_accuracy" in run(capsys, "validate", "--ckpt_path", last["auto"])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("options", [["--data.balance", "true"], ["--model.class_weights", "auto"]])
def test_a_run_that_makes_up_for_rare_classes_resumes_to_the_same_weights(unequal, capsys, options, precision):
    fit = ["fit", "--config", TINY, "--model.recipe.schedule", "constant", *options, "--trainer.precision", precision]
    run(capsys, *fit, "--name", "whole")
    run(capsys, *fit, "--name", "part", "--trainer.max_epochs", "2")
    last = {name: f"runs/{name}/version_0/checkpoints/last.ckpt" for name in ("whole", "part", "rest")}
    run(capsys, "fit", "--ckpt_path", last["part"], "--name", "rest", "--trainer.max_epochs", "3")
    assert_same_weights(last["whole"], last["rest"])


def test_unequal_classes_are_told_of_at_the_start_and_the_worst_at_the_end(unequal, capsys, caplog):
    with caplog.at_level("INFO"):
        table = run(capsys, "fit", "--config", TINY, "--name", "rare", "--model.recipe.learning_rate", "1e-9")
    told = "Classes are unequal: 1 images of 1_digits to train on, 16 of 0_digits. --data.balance true"
    assert caplog.text.count(told) == 1
    summary = summary_of("rare")
    assert summary["val_images_per_class"] == {"0_digits": 4, "1_digits": 1, "2_digits": 4}
    worst = min(summary["val_accuracy_per_class"], key=summary["val_accuracy_per_class"].get)
    assert f"worst class          0.00% (0 of {summary['val_images_per_class'][worst]}) of {worst}\n" in table
    assert Path("runs/rare/version_0/classes.png").stat().st_size > 0


@pytest.mark.parametrize("options", [["--data.balance", "true"], ["--model.class_weights", "auto"]])
def test_who_makes_up_for_rare_classes_is_not_told_of_them(unequal, capsys, caplog, options):
    with caplog.at_level("INFO"):
        run(capsys, "fit", "--config", TINY, "--trainer.max_epochs", "1", *options)
    assert "unequal" not in caplog.text


def test_equal_classes_are_not_told_of(workplace, capsys, caplog):
    shutil.rmtree("digits/2_digits")
    with caplog.at_level("INFO"):
        table = run(capsys, "fit", "--config", TINY, "--trainer.max_epochs", "20")  # by then it tells them apart
    assert "unequal" not in caplog.text
    assert "worst class" not in table


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.class_weights", "[1, 2]"], "class_weights has 2 numbers for 3 classes"),
        (["--model.class_weights", "[1, 0, 2]"], "class_weights must be above 0"),
        (["--model.class_weights", "some"], "class_weights"),
        (["--model.class_weights", "auto", "--data.balance", "true"], "leave one of them out"),
        (["--model", "LineReader", "--model.class_weights", "auto", "--data", "StringsDataModule"], "are for classif"),
        (["--data", "tests.test_own_classes.Pairs", "--model.class_weights", "auto"], "images of Pairs: give numbers"),
    ],
)
def test_a_mistake_about_rare_classes_is_one_clear_line(workplace, capsys, options, message):
    trainer = ["--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
    config = [] if "--data" in options else ["--config", TINY]
    assert message in fail(capsys, "fit", *config, *trainer, *options)
    assert not Path("runs").exists()


@pytest.mark.torchrun
def test_two_processes_balance_together(unequal):
    process = start("fit", "--config", TINY, "--data.balance", "true", "--data.batch_size", "5", *DDP)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert out.count("validation accuracy") == 1
