"""A sweep searches for settings: it goes on where it was, is shared by processes, and its best run is repeated."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.callbacks import Callback
from optuna.trial import create_trial

from lightning_modules.cli import main as fit
from lightning_modules.commands.sweep import main
from lightning_modules.networks import CustomCNN
from lightning_modules.search_space import read_space
from lightning_modules.trials import Sweep
from tests.conftest import REPOSITORY, TINY, draw_digits, start
from tests.test_cli import assert_same_weights, fail, run

SPACE = """
model.recipe.learning_rate: {low: 1e-3, high: 1, log: true}
data.batch_size: {choices: [8, 16]}
model.width: {low: 2, high: 4}
"""
SWEEP = ("--config", TINY, "--space", "space.yaml", "--trainer.max_epochs", "2")
FOLDER = Path("runs/sweep")


@pytest.fixture
def space(workplace):
    """An empty current folder but for ``digits/`` and ``space.yaml``."""
    Path("space.yaml").write_text(SPACE)
    return workplace


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The folder of a sweep of six trials that nobody interrupted, and what it printed."""
    home = tmp_path_factory.mktemp("sweep")
    draw_digits(home / "digits")
    (home / "space.yaml").write_text(SPACE)
    process = start(*SWEEP, "--trials", "6", module="lightning_modules.sweep", cwd=home)
    out, err = process.communicate(timeout=1000)
    assert process.returncode == 0, err
    return home / FOLDER, out


def table(folder):
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def without_seconds(rows):
    return [{name: row[name] for name in row if name != "seconds"} for row in rows]


def last(folder, trial):
    return folder / trial / "checkpoints" / "last.ckpt"


class KillOnce(Callback):
    """Kills its own process in the second epoch of the third trial, the first time."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        third = Path(trainer.default_root_dir).name == "trial_2"
        if third and trainer.current_epoch == 1 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)


class Fragile(CustomCNN):
    """Diverges with any but the smallest width."""

    def training_loss(self, outputs, batch):
        loss = super().training_loss(outputs, batch)
        return loss if self.hparams["width"] == 2 else loss * float("nan")


def test_each_trial_is_a_run_within_the_space_and_the_best_is_named(whole):
    folder, printed = whole
    rows = table(folder)
    assert [row["trial"] for row in rows] == [f"trial_{number}" for number in range(6)]
    complete = [row for row in rows if row["state"] == "complete"]
    assert len(complete) >= 5  # before there is a median to be below
    for row in complete:
        config = yaml.safe_load((folder / row["trial"] / "config.yaml").read_text())
        rate, width = (config["model"]["init_args"][name] for name in ("recipe", "width"))
        assert float(row["model.recipe.learning_rate"]) == rate["learning_rate"]
        assert 1e-3 <= rate["learning_rate"] <= 1
        assert int(row["model.width"]) == width
        assert 2 <= width <= 4
        assert int(row["data.batch_size"]) == config["data"]["init_args"]["batch_size"]
        assert (folder / row["trial"] / "summary.json").exists()
    best = max(complete, key=lambda row: float(row["value"]))
    assert printed.splitlines()[1].startswith(f"{best['trial']}  complete")
    assert f"({best['trial']})\n" in printed
    assert (folder / "sweep.png").stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_sweep_in_either_precision_is_repeated_by_its_best_settings(space, capsys, precision):
    run(capsys, *SWEEP, "--trials", "1", "--trainer.precision", precision, main=main)
    run(capsys, "fit", "--config", str(FOLDER / "best.yaml"), "--name", "again", main=fit)
    assert_same_weights(last(FOLDER, "trial_0"), last(Path("runs/again"), "version_0"))


def test_the_best_settings_give_the_best_run_again(whole, workplace, capsys):
    folder, printed = whole
    best = printed.splitlines()[1].split()[0]
    run(capsys, "--config", str(folder / "best.yaml"), "--name", "again", main=lambda args: fit(["fit", *args]))
    assert_same_weights(last(Path("runs/again"), "version_0"), last(folder, best))


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on_where_it_was(whole, space, capsys):
    command = (*SWEEP, "--trials", "6")
    killer = ("--trainer.callbacks+", "tests.test_sweep.KillOnce")
    process = start(*command, *killer, module="lightning_modules.sweep")
    _, err = process.communicate(timeout=1000)
    assert process.returncode == -signal.SIGKILL, err
    assert [row["trial"] for row in table(FOLDER)] == ["trial_0", "trial_1"]
    kept = last(FOLDER, "trial_0").stat().st_mtime_ns
    message = fail(capsys, *command, *killer, "--monitor", "val_loss", main=main)
    assert "runs/sweep: began with other settings: monitor; leave them, or name another folder with --name" in message

    printed = run(capsys, *command, *killer, main=main)
    assert last(FOLDER, "trial_0").stat().st_mtime_ns == kept
    whole_folder, _ = whole
    assert without_seconds(table(FOLDER)) == without_seconds(table(whole_folder))
    for trial in ("trial_1", "trial_2", "trial_3"):
        assert_same_weights(last(FOLDER, trial), last(whole_folder, trial))
    assert sorted(path.name for path in FOLDER.glob(".*")) == [".sweep.lock"]
    assert yaml.safe_load((FOLDER / "best.yaml").read_text())["ckpt_path"] is None
    assert run(capsys, *command, *killer, main=main) == printed  # nothing is left to do but to say so

    more = run(capsys, *command[:-1], "7", *killer, main=main)
    assert "7 complete" in more or "pruned" in more
    assert len(table(FOLDER)) == 7


@pytest.mark.slow
def test_processes_share_the_trials(space):
    command = (*SWEEP, "--trials", "5", "--trainer.max_epochs", "1")
    processes = [start(*command, module="lightning_modules.sweep") for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=1000)
        assert process.returncode == 0, err
        assert "runs/sweep/trial_" in err  # each had a share
    rows = table(FOLDER)
    assert [row["trial"] for row in rows] == [f"trial_{number}" for number in range(5)]
    assert len({row["model.recipe.learning_rate"] for row in rows}) == 5


def test_a_sweep_that_comes_to_nothing_leaves_other_runs_alone(space, capsys):
    earlier = Path("runs/sweep/version_0/checkpoints/best.ckpt")
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    assert "no such file or directory" in fail(capsys, *SWEEP, "--trials", "1", "--data.root", "nowhere", main=main)
    assert [path for path in Path("runs").rglob("*") if path.is_file()] == [earlier]
    fail(capsys, *SWEEP, "--trials", "1", "--data.root", "nowhere", "--name", "other", main=main)
    assert not Path("runs/other").exists()


def test_a_trial_is_not_given_up_for_what_is_wrong_with_the_machine(space, capsys):
    command = (*SWEEP, "--trials", "3", "--trainer.max_epochs", "1")
    run(capsys, *command[:-3], "1", *command[-2:], main=main)
    for mistake in (("--trainer.devices", "2"), ("--trainer.accelerator", "tpu")):
        assert "rainer" in fail(capsys, *command, *mistake, main=main)
    assert [row["state"] for row in table(FOLDER)] == ["complete"]
    assert "3 complete" in run(capsys, *command, main=main)


KILLED = """
import contextlib, os
from pathlib import Path
from lightning_modules.search_space import read_space
from lightning_modules.trials import Sweep

for end in ("stopped", "killed", "killed", "stopped", "killed", "killed"):
    if os.fork():
        os.wait()
        continue
    sweep = Sweep(Path("sweep"), read_space(Path("space.yaml")), "maximize", seed=1, warmup=1)
    with contextlib.suppress(KeyboardInterrupt), sweep.next_trial(most=1) as trial:
        print(sweep.number(trial), trial.params, flush=True)
        if end == "killed":
            os._exit(9)
        raise KeyboardInterrupt
    os._exit(0)
"""


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_three_times_is_left_out(space):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, env=environment, check=True)
    tried = done.stdout.splitlines()
    assert len(set(tried[:5])) == 1  # with the same settings
    assert [line.split()[0] for line in tried] == ["0", "0", "0", "0", "0", "1"]


def test_what_is_worse_than_the_median_is_pruned_and_its_folder_is_removed(space, capsys):
    Path("space.yaml").write_text("model.recipe.learning_rate: {low: 1e-9, high: 1e-8}")
    sweep = Sweep(FOLDER, read_space(Path("space.yaml")), "maximize", seed=7, warmup=1)
    for number in range(5):
        sweep.study.add_trial(
            create_trial(
                params={"model.recipe.learning_rate": 1e-9},
                distributions=sweep.space,
                value=1.0,
                intermediate_values=dict.fromkeys(range(9), 1.0),
                user_attrs={"number": number},
            )
        )
    best = FOLDER / "trial_0" / "config.yaml"
    best.parent.mkdir()
    best.write_text("{}")
    printed = run(capsys, *SWEEP, "--trials", "6", "--trainer.max_epochs", "9", main=main)
    *_, pruned = table(FOLDER)
    assert (pruned["trial"], pruned["state"]) == ("trial_5", "pruned")
    assert float(pruned["value"]) < 1
    assert [path.name for path in FOLDER.glob("trial_*")] == ["trial_0"]
    assert "5 complete, 1 pruned" in printed
    assert len(sweep.study.trials[5].intermediate_values) == 3  # of nine epochs, after a quarter of them


@pytest.mark.slow
def test_what_diverges_is_given_up_and_the_sweep_goes_on(space, capsys):
    Path("space.yaml").write_text("model.width: {choices: [2, 3]}")
    network = ("--model", "tests.test_sweep.Fragile", "--trainer.max_epochs", "1")
    printed = run(capsys, *SWEEP, *network, "--trials", "5", "--monitor", "val_loss", main=main)
    rows = table(FOLDER)
    assert {(row["state"], row["model.width"]) for row in rows} == {("complete", "2"), ("diverged", "3")}
    assert "diverged" in printed
    kept = {row["trial"] for row in rows if row["state"] == "complete"}
    assert {path.name for path in FOLDER.glob("trial_*")} == kept
    values = [float(row["value"]) for row in rows if row["state"] == "complete"]
    assert f"best          {min(values):.4g} " in printed


@pytest.mark.slow
def test_what_no_network_can_be_is_given_up_once_a_trial_is_done(space, capsys):
    Path("space.yaml").write_text("model.width: {choices: [2, 1]}")
    network = ("--trainer.max_epochs", "1")
    printed = run(capsys, *SWEEP, *network, "--trials", "5", main=main)
    rows = table(FOLDER)
    assert {(row["state"], row["model.width"]) for row in rows} == {("complete", "2"), ("impossible", "1")}
    assert "impossible" in printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "space.yaml: must name options of fit and what each may be"),
        ("model.width: 3", "space.yaml: model.width: must be such as {low: 1e-4, high: 0.1, log: true}"),
        ("model.width: {low: 3}", "must be such as"),
        ("model.width: {low: 3, high: 8, unit: cm}", 'got {"low": 3, "high": 8, "unit": "cm"}'),
        ("model.width: {low: 8, high: 3}", "space.yaml: model.width: "),
        ("model.width: {low: two, high: 3}", 'low, high and step must be numbers, got {"low": "two", "high": 3}'),
        ("model.width: {low: 2, high: 3, log: maybe}", 'log must be true or false, got "maybe"'),
        ("model.width: {low: 0, high: 3, log: true}", "space.yaml: model.width: "),
        ("model.width: {choices: []}", "choices must be a list of values, got []"),
        ("model.width: {choices: [[2], [3]]}", "choices must be numbers, text, true, false or null"),
        ("monitor: {choices: [val_loss]}", "space.yaml: monitor can't be searched"),
        ("model.width: {choices: [2", "space.yaml: not YAML"),
        ("model.height: {low: 2, high: 3}", "height"),
        ("model.width: {choices: [wide]}", "width"),
    ],
)
def test_a_mistake_in_the_space_is_one_clear_line(space, capsys, text, message):
    Path("space.yaml").write_text(text)
    assert message in fail(capsys, *SWEEP, main=main)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trials", "0"], "--trials must be at least 1, got 0"),
        (["--tune", "lr"], "--tune: a sweep searches for these itself"),
        (["--monitor", "epoch"], "--monitor epoch: no trial would be better than another"),
        (["--data.folds", "3"], "compares single runs, not those of data.folds; --data.fold 1 is one"),
        (["--teachers", "2"], "not those of teachers"),
        (["--trainer.fast_dev_run", "true"], "leave trainer.fast_dev_run out"),
        (
            ["--trainer.devices", "2"],
            "each trial of a sweep works in one process on one device: add --trainer.devices 1",
        ),
        (["--data.root", "nowhere"], "nowhere"),
        (["--trainer.limit_val_batches", "0"], "a trial has no result"),
        (["--space", "nowhere.yaml"], "nowhere.yaml: no such file or directory"),
    ],
)
def test_what_no_trial_can_have_is_one_clear_line(space, capsys, options, message):
    assert message in fail(capsys, *SWEEP, "--trainer.max_epochs", "1", *options, main=main)
    assert not Path("runs").exists() or "no result" in message


def test_a_missing_package_is_named(space, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna.distributions", None)
    monkeypatch.delitem(sys.modules, "lightning_modules.search_space", raising=False)
    assert 'pip install ".[sweep]" in the clone' in fail(capsys, *SWEEP, main=main)


def test_a_damaged_database_is_one_clear_line(space, capsys):
    FOLDER.mkdir(parents=True)
    (FOLDER / "sweep.db").write_bytes(b"no database at all, but long enough to be read as one" * 40)
    assert "sweep.db: can't be read" in fail(capsys, *SWEEP, main=main)
