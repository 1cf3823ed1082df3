"""A network learns from pictures that it got wrong, and forgets nothing of what it knew."""

import csv
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.errors import UserError
from datamodules.splits import read_rows
from lightning_modules.checkpoint import load_classifier
from lightning_modules.commands import export
from lightning_modules.run import Run
from retrieval.app.corrections import Corrections
from tests.conftest import REPOSITORY, SHARED, TINY, draw_digit, draw_digits, start, train_in
from tests.test_cli import assert_same_weights, best, fail, run

CONFIG = str(REPOSITORY / "configs" / "adapt.yaml")
# The recipe at a size for tests: as many steps, of fewer images.
ADAPT = ["fit", "--config", CONFIG, "--data.root", "corrections", "--data.replayed", "400", "--data.batch_size", "16"]
TWO = "2_digits"


def draw_two(seed: int) -> Image.Image:
    """A 2 as nobody else writes it: without its upper half."""
    pixels = np.asarray(draw_digit(2, seed)).copy()
    pixels[:10] //= 8
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A network that knows its digits, eight such pictures among the 2s, twelve more in ``others/``, what it learns."""
    home = tmp_path_factory.mktemp("adapting")
    draw_digits(home / "digits")
    for folder, seeds in ((f"corrections/{TWO}", range(8)), ("others", range(8, 20))):
        (home / folder).mkdir(parents=True)
        for seed in seeds:
            draw_two(seed).save(home / folder / f"{seed}.png")
    # Without a warm-up the average is of a network that hasn't settled: one that has reads some of them on some CPUs.
    average = (
        "--trainer.callbacks",
        "lightning.pytorch.callbacks.EMAWeightAveraging",
        "--trainer.callbacks.decay",
        "0.9",
    )
    training = ("--config", TINY, "--trainer.max_epochs", "30", *average)
    base = train_in(home, *training, "--name", "base") / "base" / "version_0"
    train_in(home, *ADAPT[1:], "--ckpt_path", best(base))
    return home


@pytest.fixture
def base(home, tmp_path, monkeypatch):
    """The run folder of that network, in a copy of all that is the current folder."""
    shutil.copytree(home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    return Path("runs/base/version_0")


@pytest.fixture
def adapted(base):
    """The run folder of what it learnt."""
    return Path("runs/adapt/version_0")


def mistakes(capsys, run_folder):
    """How many of the other pictures a network gets wrong."""
    run(capsys, "predict", "--ckpt_path", best(run_folder), "--images", "others", "--output", "said.csv")
    with Path("said.csv").open() as file:
        return sum(row["label"] != TWO for row in csv.DictReader(file))


def test_a_network_learns_what_it_is_corrected_in_and_keeps_what_it_knew(adapted, base, capsys):
    before = mistakes(capsys, base)
    assert before >= 6
    assert mistakes(capsys, adapted) <= before / 2
    known, now = load_classifier(Path(best(base))), load_classifier(Path(best(adapted)))
    assert now.class_names == known.class_names  # though there are pictures of one class alone
    assert now.normalizer == known.normalizer
    assert now.recipe.label_smoothing == known.recipe.label_smoothing
    assert Run(adapted).summary["val_accuracy"] >= Run(base).summary["val_accuracy"]
    assert Run(adapted).summary["best_epoch"] == Run(adapted).summary["epochs"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_network_learns_in_either_precision(base, capsys, precision):
    run(capsys, *ADAPT, "--ckpt_path", best(base), "--name", "either", "--trainer.precision", precision)
    assert mistakes(capsys, Path("runs/either/version_0")) <= mistakes(capsys, base) / 2


def test_pictures_are_trained_on_and_what_the_network_was_validated_on_is_so_again(adapted, base):
    rows = read_rows(adapted / "split.csv")
    pictures = {name: row for name, row in rows.items() if name.startswith("corrections/")}
    assert list(pictures.values()) == [(TWO, "train")] * 8
    replayed = {name.removeprefix("replay/"): row for name, row in rows.items() if name not in pictures}
    assert replayed == read_rows(base / "split.csv")


def test_an_adapted_network_can_be_adapted_exported_and_scored_though_more_pictures_came(adapted, capsys):
    draw_two(30).save(Path("corrections", TWO, "new.png"))
    run(capsys, "--weights_only", str(adapted), "exported", main=export.main)
    assert "test_accuracy" in run(capsys, "test", "--ckpt_path", best(adapted))
    run(capsys, *ADAPT, "--ckpt_path", "exported")
    rows = read_rows(adapted.with_name("version_1") / "split.csv")
    assert sum(name.startswith("corrections/") for name in rows) == 9
    assert sum(name.startswith("replay/") for name in rows) == 60


@pytest.mark.slow
def test_an_adaptation_that_is_killed_goes_on_to_the_same_weights(adapted, base, capsys):
    kill = ["--trainer.callbacks+", "tests.test_processes.Kill", "--trainer.callbacks.epoch", "1"]
    process = start(*ADAPT, "--ckpt_path", best(base), "--name", "killed", *kill)
    _, err = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL, err
    last = Path("runs/killed/version_0/checkpoints/last.ckpt")
    config = last.parents[1] / "config.yaml"
    config.write_text(config.read_text().replace("epoch: 1\n", "epoch: 99\n"))
    run(capsys, "fit", "--ckpt_path", str(last), "--name", "resumed")
    assert_same_weights(adapted / "checkpoints" / "last.ckpt", Path("runs/resumed/version_0/checkpoints/last.ckpt"))


@pytest.mark.slow
def test_the_saved_config_adapts_again_to_the_same_weights(adapted, capsys):
    run(capsys, "fit", "--config", str(adapted / "config.yaml"))
    again = adapted.with_name("version_1")
    assert_same_weights(adapted / "checkpoints" / "last.ckpt", again / "checkpoints" / "last.ckpt")


def test_pictures_that_cannot_be_learnt_from_are_one_clear_line(base, capsys):
    corrections = Path("corrections")
    adapt = [*ADAPT, "--ckpt_path", best(base)]
    Image.new("L", (40, 40), 200).save(corrections / TWO / "blank.png")
    assert f"nothing is seen on {TWO}/blank.png" in fail(capsys, *adapt)
    (corrections / TWO / "blank.png").write_bytes(b"no image")
    assert "blank.png" in fail(capsys, *adapt)
    (corrections / TWO).rename(corrections / "7")
    assert "corrections has the unknown class folder 7: the network tells apart 0_digits" in fail(capsys, *adapt)
    for path in (corrections / "7").iterdir():
        path.unlink()
    (corrections / "7").rename(corrections / TWO)
    assert "corrections: no pictures in its class folders" in fail(capsys, *adapt)
    assert not Path("runs/adapt/version_1").exists()


def test_a_base_that_cannot_be_adapted_is_one_clear_line(base, capsys):
    assert "no-such.ckpt: no such file" in fail(capsys, *ADAPT, "--ckpt_path", "no-such.ckpt")
    reader = str(REPOSITORY / "lightning_modules" / "embedded" / "reader")
    assert "a LineReader, which can't be adapted" in fail(capsys, *ADAPT, "--ckpt_path", reader)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="MNIST is not here")
def test_without_a_checkpoint_the_network_that_comes_with_the_package_is_adapted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(SHARED / "data")
    (tmp_path / "corrections" / "2").mkdir(parents=True)
    draw_two(0).resize((60, 60)).save(tmp_path / "corrections" / "2" / "a.png")
    run(capsys, *ADAPT, "--data.replayed", "200", "--trainer.max_epochs", "1")
    summary = json.loads((tmp_path / "runs" / "adapt" / "version_0" / "summary.json").read_text())
    assert summary["val_accuracy"] > 0.97


def test_a_picture_is_kept_once_as_it_was_given_and_the_last_word_counts(tmp_path):
    kept = Corrections(tmp_path / "kept", ["0", "1", "2"])
    picture = draw_digit(2, 0).convert("RGB").resize((70, 50))
    first = kept.keep(picture, "1")
    assert kept.keep(picture, "1") == first
    assert len(kept) == 1
    with Image.open(first) as image:
        assert (image.size, image.tobytes()) == (picture.size, picture.tobytes())
    assert kept.keep(picture, "2") == tmp_path / "kept" / "2" / first.name
    assert not first.exists()
    kept.keep(picture.rotate(90, expand=True), "2")
    assert len(kept) == 2


@pytest.mark.parametrize("label", ["3", "../..", "", "/tmp", ["1"], None])
def test_only_a_class_is_a_folder(tmp_path, label):
    kept = Corrections(tmp_path / "kept", ["0", "1"])
    with pytest.raises(UserError, match="not one of the classes"):
        kept.keep(draw_digit(1, 0), label)
    assert list(tmp_path.rglob("*")) == [tmp_path / "kept"]


@pytest.mark.parametrize("name", ["a/b", "..", ".hidden", ""])
def test_a_class_that_no_folder_can_be_named_by_is_refused_at_once(tmp_path, name):
    with pytest.raises(UserError, match="no folder can be named so"):
        Corrections(tmp_path / "kept", ["0", name])
    assert not (tmp_path / "kept").exists()
