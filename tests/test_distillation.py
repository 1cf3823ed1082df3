"""A network that learns from others, and a series that trains those first."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from datamodules.dataset import OUTLIER, Batch
from lightning_modules.checkpoint import load_classifier
from lightning_modules.commands.export import main as export
from lightning_modules.distillation import Distillation
from lightning_modules.networks import CustomCNN, ReferenceCNN
from lightning_modules.recipe import Recipe
from lightning_modules.run import Run
from tests.conftest import REPOSITORY, TINY, draw_digits, start, train_in
from tests.test_cli import assert_same_weights, best, fail, run
from tests.test_processes import DDP

SERIES = ["--config", TINY, "--trainer.max_epochs", "2", "--teachers", "2"]
NAMES = ["teacher_1", "teacher_2", "student"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The run folder of two teachers and their student, which nobody interrupted."""
    home = tmp_path_factory.mktemp("distillation")
    draw_digits(home / "digits")
    return train_in(home, *SERIES) / "custom_cnn" / "version_0"


def table(folder):
    with (folder / "distillation.csv").open() as file:
        return list(csv.DictReader(file))


def last(folder, name):
    return folder / name / "checkpoints" / "last.ckpt"


def settings(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.mark.parametrize("class_weights", [None, [1.0, 2.0, 0.5]])
def test_half_of_the_loss_is_what_the_teachers_say_of_the_same_images_on_average(class_weights):
    torch.manual_seed(0)
    names = ["a", "b", "c"]
    recipe = Recipe(label_smoothing=0.1, class_weights=class_weights)
    student = CustomCNN(names, 1, 28, recipe=recipe).train()
    student.class_weights = None if class_weights is None else torch.tensor(class_weights)
    teachers = [CustomCNN(names, 1, 28).eval(), ReferenceCNN(names, 1, 28).eval()]
    images = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([0, 2, 1, OUTLIER]), torch.arange(4))
    outputs = student(images)
    alone = student.training_loss(outputs, batch)
    student.teachers = teachers
    loss = student.training_loss(outputs, batch)
    with torch.no_grad():
        taught = sum(teacher(images).softmax(1) for teacher in teachers) / 2
    taught[3] = 1 / 3  # they don't know what shows none of the classes
    torch.testing.assert_close(loss, (alone + torch.nn.functional.cross_entropy(outputs, taught)) / 2)
    loss.backward()
    assert all(parameter.grad is None for teacher in teachers for parameter in teacher.parameters())
    assert not [name for name in student.state_dict() if "teacher" in name]


@pytest.mark.slow
def test_the_best_recipe_for_mnist_trains_three_teachers_and_a_student(tmp_path):
    draw_digits(tmp_path / "digits")
    config = ["--config", f"{REPOSITORY}/configs/mnist_best.yaml", "--data", "ImageFolderDataModule"]
    quick = ["--data.root", "digits", "--trainer.max_epochs", "1", "--model.width", "4"]
    folder = train_in(tmp_path, *config, *quick) / "mnist_best" / "version_0"
    assert [row["run"] for row in table(folder)] == ["teacher_1", "teacher_2", "teacher_3", "student"]
    assert all(Run(folder / name).best.exists() for name in ("teacher_3", "student"))


def test_teachers_are_trained_first_each_from_another_seed_and_then_the_student(whole):
    runs = {name: Run(whole / name) for name in NAMES}
    assert [row["run"] for row in table(whole)] == NAMES
    for row in table(whole):
        assert float(row["val_accuracy"]) == pytest.approx(runs[row["run"]].summary["val_accuracy"], abs=1e-6)
    assert [settings(whole / name)["seed_everything"] for name in NAMES] == [8, 9, 7]
    assert [settings(whole / name)["teachers"] for name in NAMES[:2]] == [None, None]
    assert [Path(path).parts[-3] for path in settings(whole / "student")["teachers"]] == NAMES[:2]
    assert settings(whole)["teachers"] == 2
    assert len({Run(whole / name).validated for name in NAMES}) == 1
    assert (whole / "distillation.png").stat().st_size > 0


@pytest.mark.slow
def test_the_student_is_an_ordinary_run_that_its_config_repeats(whole, monkeypatch, capsys):
    monkeypatch.chdir(whole.parents[2])  # where the teachers' relative paths lead
    run(capsys, "fit", "--config", str(whole / "student" / "config.yaml"), "--name", "again")
    assert_same_weights(Path("runs/again/version_0/checkpoints/last.ckpt"), last(whole, "student"))
    accuracy = json.loads((whole / "student" / "summary.json").read_text())["val_accuracy"]
    assert f"{accuracy:.4f}" in run(capsys, "validate", "--ckpt_path", str(Run(whole / "student").best))
    run(capsys, "fit", "--config", TINY, "--trainer.max_epochs", "2", "--name", "untaught")
    untaught = load_classifier(Path("runs/untaught/version_0/checkpoints/last.ckpt")).state_dict()
    taught = load_classifier(last(whole, "student")).state_dict()
    assert any(not torch.equal(taught[name], untaught[name]) for name in taught)


class KillOnce(Callback):
    """Kills its own process in the second epoch of the second teacher, and then of the student, once each."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        mark = Path(f"killed_{Path(trainer.default_root_dir).name}")
        if trainer.current_epoch == 1 and mark.name != "killed_teacher_1" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_series_that_is_killed_goes_on_where_it_was(whole, workplace, capsys):
    folder = Path("runs/custom_cnn/version_0")
    first = [*SERIES, "--trainer.callbacks+", "tests.test_distillation.KillOnce"]
    for options, finished in ((first, NAMES[:1]), (["--ckpt_path", str(folder)], NAMES[:2])):
        process = start("fit", *options)
        _, err = process.communicate(timeout=1000)
        assert process.returncode == -signal.SIGKILL, err
        assert [row["run"] for row in table(folder)] == finished
    message = fail(capsys, "fit", "--ckpt_path", str(folder), "--teachers", "3")
    assert "began with other settings: teachers; leave them or start a new run" in message
    printed = run(capsys, "fit", "--ckpt_path", str(folder))
    for name in NAMES:
        assert_same_weights(last(folder, name), last(whole, name))
    student = json.loads((folder / "student" / "summary.json").read_text())
    right = student["val_images"] - student["val_mistakes"]
    assert f"student        {student['val_accuracy']:.2%} ({right} of {student['val_images']})\n" in printed
    assert "ensemble       " in printed


def test_the_ensemble_is_scored_by_the_mean_of_its_probabilities(whole, monkeypatch):
    monkeypatch.chdir(whole.parents[2])
    series = Distillation(whole, 2, seed=7)
    data = Run(whole / "student").load_data()
    batch = data.val_set.batch(range(len(data.val_set)))
    networks = [load_classifier(Run(whole / name).best) for name in NAMES[:2]]
    with torch.inference_mode():
        probabilities = sum(network.probabilities(batch.images) for network in networks) / 2
    right = int((probabilities.argmax(1) == batch.labels).sum())
    assert f"({right} of {len(batch.labels)}), the teachers' mean" in series.report(torch.device("cpu"))


@pytest.mark.slow
def test_teachers_may_be_there_already_of_any_kind_and_as_exports(trained, capsys):
    run(capsys, "fit", "--config", TINY, "--model", "ReferenceCNN", "--name", "other", "--trainer.max_epochs", "1")
    other = Run(Path("runs/other/version_0")).best
    run(capsys, str(trained), "exported", main=export)
    given = f"[exported,{other}]"
    printed = run(capsys, "fit", "--config", TINY, "--name", "taught", "--trainer.max_epochs", "1", "--teachers", given)
    assert "runs/taught/version_0" in printed
    assert settings(Path("runs/taught/version_0"))["teachers"] == ["exported", str(other)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--teachers", "0"], "how many must be at least 1, got 0"),
        (["--teachers", "[missing.ckpt]"], "missing.ckpt: no such file"),
        (["--teachers", "2", "--data.folds", "3"], "data.folds are trained without"),
        (["--teachers", "[a.ckpt]", "--data.folds", "3"], "data.folds are trained without"),
        (["--teachers", "2", "--trainer.fast_dev_run", "true"], "which each of teachers needs: leave one of them out"),
        (["--teachers", "2", "--tune", "lr"], "the runs of teachers have one setting"),
        (["--teachers", "2", "--ckpt_path", "digits"], "not a run of folds or teachers"),
    ],
)
def test_a_mistake_about_teachers_is_one_clear_line(workplace, capsys, options, message):
    assert message in fail(capsys, "fit", "--config", TINY, "--trainer.max_epochs", "1", *options)
    assert not Path("runs").exists()


def test_a_teacher_of_other_classes_is_refused(trained, capsys):
    Path("digits/1_digits").rename("digits/ones")
    message = fail(capsys, "fit", "--config", TINY, "--teachers", f"[{best(trained)}]", "--name", "taught")
    assert "tells 0_digits, 1_digits, 2_digits apart, where its student has 0_digits, 2_digits, ones" in message
    assert not Path("runs/taught").exists()


@pytest.mark.torchrun
def test_two_processes_train_a_series_together(workplace):
    Path("runs/custom_cnn/version_0").mkdir(parents=True)  # of an earlier run, which the second process must not take
    process = start("fit", "--config", TINY, "--trainer.max_epochs", "1", "--teachers", "1", *DDP)
    out, err = process.communicate(timeout=1000)
    assert process.returncode == 0, err
    assert out.count("ensemble") == 1
    assert [row["run"] for row in table(Path("runs/custom_cnn/version_1"))] == ["teacher_1", "student"]
    assert list(Path("runs/custom_cnn/version_0").iterdir()) == []


@pytest.mark.torchrun
def test_processes_that_others_start_cannot_train_a_series(workplace):
    torchrun = ["--nproc-per-node", "2", "-m", "lightning_modules"]
    process = start(*torchrun, "fit", *SERIES, *DDP, module="torch.distributed.run")
    _, err = process.communicate(timeout=1000)
    assert process.returncode != 0
    assert "teachers: processes that were started together can't agree on a new folder" in err
    assert not Path("runs").exists()


def test_a_colour_network_teaches_one_that_sees_grey(trained, capsys):
    colour = ("fit", "--config", TINY, "--trainer.max_epochs", "1", "--data.in_channels", "3", "--name", "colour")
    run(capsys, *colour)
    teacher = "[runs/colour/version_0/checkpoints/best.ckpt]"
    run(capsys, "fit", "--config", TINY, "--trainer.max_epochs", "1", "--teachers", teacher, "--name", "grey")
