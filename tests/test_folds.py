"""Cross-validation."""

import csv
import json
import os
import signal
import statistics
from pathlib import Path

import numpy as np
import pytest
import yaml
from lightning.pytorch.callbacks import Callback

from datamodules.splits import split_into_folds
from lightning_modules.cli import main
from lightning_modules.run import Run
from tests.conftest import TINY, draw_digits, start, train_in
from tests.test_cli import assert_same_weights, fail, run
from tests.test_processes import DDP
from tests.test_splits import distinct

FOLDS = ["--config", TINY, "--trainer.max_epochs", "2", "--data.folds", "3"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The run folder of three folds that nobody interrupted."""
    home = tmp_path_factory.mktemp("folds")
    draw_digits(home / "digits")
    return train_in(home, *FOLDS) / "custom_cnn" / "version_0"


def table(folder):
    with (folder / "folds.csv").open() as file:
        return list(csv.DictReader(file))


def metrics(folder, fold):
    with (folder / f"fold_{fold}" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def last(folder, fold):
    return folder / f"fold_{fold}" / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("counts", [[20, 20, 20], [31, 7, 12], [100, 3, 3, 4]])
def test_every_class_and_the_whole_are_split_into_equal_parts(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    fold_of = split_into_folds(labels, distinct(len(labels)), 3, seed=42)
    for rows in (labels >= 0, *(labels == label for label in range(len(counts)))):
        parts = np.bincount(fold_of[rows], minlength=4)
        assert parts[0] == 0
        assert parts[1:].max() - parts[1:].min() <= 1
    assert (fold_of != split_into_folds(labels, distinct(len(labels)), 3, seed=43)).any()


def test_copies_are_in_one_fold_and_the_order_of_the_images_does_not_matter():
    content = np.random.default_rng(0).integers(0, 40, 400)
    labels = content % 2
    fold_of = split_into_folds(labels, distinct(40)[content], 5, seed=42)
    assert all(len(set(fold_of[content == image])) == 1 for image in range(40))
    assert np.bincount(fold_of)[1:].min() > 40
    order = np.random.default_rng(1).permutation(400)
    shuffled = split_into_folds(labels[order], distinct(40)[content[order]], 5, seed=42)
    np.testing.assert_array_equal(shuffled, fold_of[order])


def test_each_fold_is_a_run_and_each_image_is_validated_once(whole):
    runs = [Run(whole / f"fold_{fold}") for fold in (1, 2, 3)]
    validated = [name for run in runs for name, _ in run.validated]
    assert len(validated) == len(set(validated)) == 60
    rows = table(whole)
    assert [row["fold"] for row in rows] == ["1", "2", "3"]
    for row, fold in zip(rows, runs, strict=True):
        assert float(row["val_accuracy"]) == pytest.approx(fold.summary["val_accuracy"], abs=1e-6)
        assert row["val_images"] == "20"
        assert yaml.safe_load(fold.config.read_text())["data"]["init_args"]["fold"] == int(row["fold"])
    assert yaml.safe_load((whole / "config.yaml").read_text())["data"]["init_args"]["fold"] is None
    for name in ("folds.png", "confusion_matrix.png", "fold_2/accuracy.png", "fold_2/metrics.csv"):
        assert (whole / name).stat().st_size > 0, name


def test_a_fold_can_be_trained_and_scored_alone(whole, workplace, capsys):
    run(capsys, "fit", *FOLDS, "--data.fold", "2", "--name", "alone")
    alone = workplace / "runs" / "alone" / "version_0"
    assert_same_weights(alone / "checkpoints" / "last.ckpt", last(whole, 2))
    accuracy = json.loads((alone / "summary.json").read_text())["val_accuracy"]
    assert f"{accuracy:.4f}" in run(capsys, "validate", "--ckpt_path", str(alone / "checkpoints" / "best.ckpt"))


class KillOnce(Callback):
    """Kills its own process in the second epoch of the second fold, the first time."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.datamodule.fold == 2 and trainer.current_epoch == 1 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_folds_that_are_killed_go_on_where_they_were(whole, workplace, capsys):
    process = start("fit", *FOLDS, "--trainer.callbacks+", "tests.test_folds.KillOnce")
    _, err = process.communicate(timeout=1000)
    assert process.returncode == -signal.SIGKILL, err
    folder = Path("runs/custom_cnn/version_0")
    assert [row["fold"] for row in table(folder)] == ["1"]
    kept = last(folder, 1).stat().st_mtime_ns, (folder / "folds.csv").read_text()
    message = fail(capsys, "fit", "--ckpt_path", str(folder), "--data.split_seed", "1")
    assert "began with other settings: data; leave them or start a new run" in message

    printed = run(capsys, "fit", "--ckpt_path", str(folder))
    assert last(folder, 1).stat().st_mtime_ns == kept[0]
    assert (folder / "folds.csv").read_text().startswith(kept[1])
    for fold in (1, 2, 3):
        assert_same_weights(last(folder, fold), last(whole, fold))
        assert metrics(folder, fold) == metrics(whole, fold)
        # It repeats the fold from nothing, not from where it went on.
        assert yaml.safe_load((folder / f"fold_{fold}" / "config.yaml").read_text())["ckpt_path"] is None
    results = [[row[name] for name in row if name != "seconds"] for row in table(folder)]
    assert results == [[row[name] for name in row if name != "seconds"] for row in table(whole)]
    accuracies = [float(row["val_accuracy"]) for row in table(folder)]
    mean = f"{statistics.mean(accuracies):.2%} ± {statistics.stdev(accuracies):.2%}"
    assert f"validation accuracy  {mean} (mean ± standard deviation of 3 folds)\n" in printed
    right = 60 - sum(int(row["val_mistakes"]) for row in table(folder))
    assert f"all images           {right / 60:.2%} ({right} of 60)\n" in printed
    assert not list(folder.rglob("*.tmp"))

    trained = last(folder, 3).stat().st_mtime_ns
    assert run(capsys, "fit", "--ckpt_path", str(folder)) == printed  # nothing is left to do but to say so
    assert last(folder, 3).stat().st_mtime_ns == trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.folds", "1"], "folds must be at least 2, or 0 for none, got 1"),
        (["--data.folds", "21"], "class 0_digits has 20 different images, too few for 21 folds"),
        (["--data.folds", "3", "--data.fold", "4"], "fold must be one of the folds, 1 to 3, got 4"),
        (["--data.fold", "1"], "data.folds says how many"),
        (["--data.folds", "3", "--data.split_file", "split.csv"], "folds and split_file both say what is validated"),
        (["--data.folds", "3", "--data.val_root", "more"], "these come with others to validate on: leave one out"),
        (
            ["--data.folds", "3", "--trainer.fast_dev_run", "true"],
            "which each of data.folds needs",
        ),
        (["--data.folds", "3", "--trainer.limit_val_batches", "0"], "fold_1 has no result"),
        (["--data.folds", "3", "--ckpt_path", "digits"], "not a run of folds or teachers (config.yaml is missing)"),
    ],
)
def test_a_mistake_about_folds_is_one_clear_line(workplace, capsys, options, message):
    draw_digits(Path("more"))
    assert message in fail(capsys, "fit", "--config", TINY, "--trainer.max_epochs", "1", *options)
    assert not list(Path().glob("runs/*/*/fold_1/summary.json"))
    assert not Path("runs").exists() or "no result" in message


def test_a_run_or_a_checkpoint_of_one_is_no_run_of_folds(trained, capsys):
    message = fail(capsys, "fit", "--ckpt_path", str(trained))
    assert "not a run of folds or teachers; name a checkpoint in it" in message
    message = fail(capsys, "fit", "--ckpt_path", str(trained / "checkpoints" / "last.ckpt"), "--data.folds", "3")
    assert "no run of data.folds, each of which starts from nothing" in message


def test_without_folds_the_split_is_the_ordinary_one(trained, capsys):
    run(capsys, "fit", "--config", TINY, "--data.folds", "0")
    assert (trained / "split.csv").read_bytes() == (trained.parent / "version_1" / "split.csv").read_bytes()
    assert_same_weights(*(trained.parent / f"version_{n}" / "checkpoints" / "last.ckpt" for n in (0, 1)))


@pytest.mark.torchrun
def test_two_processes_train_folds_together(workplace):
    Path("runs/custom_cnn/version_0").mkdir(parents=True)  # of an earlier run, which the second process must not take
    process = start("fit", "--config", TINY, "--trainer.max_epochs", "1", "--data.folds", "2", *DDP)
    out, err = process.communicate(timeout=1000)
    assert process.returncode == 0, err
    assert out.count("validation accuracy") == 1
    assert sorted(path.name for path in Path("runs/custom_cnn").iterdir()) == ["version_0", "version_1"]
    assert [row["fold"] for row in table(Path("runs/custom_cnn/version_1"))] == ["1", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_pooled_images_are_what_the_folds_scored_whatever_they_were_trained_in(
    tmp_path, monkeypatch, capsys, precision
):
    monkeypatch.chdir(tmp_path)
    draw_digits(tmp_path / "digits")
    printed = run(capsys, "fit", *FOLDS, "--trainer.precision", precision)
    rows = table(tmp_path / "runs" / "custom_cnn" / "version_0")
    right = 60 - sum(int(row["val_mistakes"]) for row in rows)
    assert f"({right} of 60)" in printed


class PressOnceAtTheEnd(Callback):
    """Presses Ctrl-C when the last batch of the first fold is done."""

    def on_train_end(self, trainer, pl_module):
        if not Path("pressed").exists():
            Path("pressed").touch()
            os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_after_the_last_batch_of_a_fold_ends_the_series(workplace, capsys):
    press = ("--trainer.callbacks+", "tests.test_folds.PressOnceAtTheEnd")
    assert main(["fit", *FOLDS, *press]) == 130
    folder = Path("runs/custom_cnn/version_0")
    assert (folder / "fold_1" / "summary.json").exists()
    assert not (folder / "fold_2").exists()
    run(capsys, "fit", *FOLDS, *press, "--ckpt_path", str(folder))
    assert [row["fold"] for row in table(folder)] == ["1", "2", "3"]
