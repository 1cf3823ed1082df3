"""What needs processes of its own: kills, Ctrl-C, several processes at once."""

import csv
import json
import os
import re
import signal
import threading
import time

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from lightning_modules.cli import main
from tests.conftest import TINY, start, wait_for
from tests.test_cli import assert_same_weights, said_of

RUNS = "runs/custom_cnn"
DDP = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.accelerator", "cpu"]


class Kill(Callback):
    """Kills its own process in the middle of an epoch.

    Args:
        epoch: Epochs that are finished before.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_weights(trained, workplace, epoch):
    kill = [
        "--trainer.callbacks+",
        "tests.test_processes.Kill",
        "--trainer.callbacks.epoch",
        str(epoch),
    ]
    process = start("fit", "--config", TINY, "--name", "killed", *kill)
    _, err = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL, err
    runs = workplace / "runs"
    last = {name: runs / name / "version_0" / "checkpoints" / "last.ckpt" for name in ("killed", "resumed")}
    assert torch.load(last["killed"], weights_only=True)["epoch"] + 1 == epoch
    resume = ["fit", "--config", TINY, "--ckpt_path", str(last["killed"]), "--name", "resumed"]
    assert main(resume) == 0
    assert_same_weights(trained / "checkpoints" / "last.ckpt", last["resumed"])
    assert not list(runs.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_training_with_its_last_checkpoint_and_pictures(workplace, sent, status):
    process = start("fit", "--config", TINY, "--trainer.max_epochs", "1000", "--early_stopping.patience", "1000")
    last = workplace / RUNS / "version_0" / "checkpoints" / "last.ckpt"
    wait_for(last, process)
    process.send_signal(sent)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert "Traceback" not in err
    assert "validation accuracy" in out
    epochs = json.loads((last.parents[1] / "summary.json").read_text())["epochs"]
    assert torch.load(last, weights_only=True)["epoch"] + 1 == epochs
    for name in ("accuracy.png", "confusion_matrix.png", "mistakes.png"):
        assert (last.parents[1] / name).stat().st_size > 0


@pytest.mark.slow
def test_ctrl_c_works_again_in_a_process_that_goes_on(workplace, capsys):
    for name in ("first", "second"):
        last = workplace / "runs" / name / "version_0" / "checkpoints" / "last.ckpt"

        def press(last=last):
            while not last.exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=press, daemon=True).start()
        endless = ["--trainer.max_epochs", "1000", "--early_stopping.patience", "1000", "--name", name]
        assert main(["fit", "--config", TINY, *endless]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert capsys.readouterr().out.count("validation accuracy") == 2


class TerminateInPrediction(Callback):
    """Asks its own process to end after the first batch."""

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_sigterm_ends_prediction_and_nothing_is_written(trained, workplace):
    best = str(trained / "checkpoints" / "best.ckpt")
    callback = ["--trainer.callbacks", "tests.test_processes.TerminateInPrediction"]
    process = start("predict", "--ckpt_path", best, "--images", "digits", *callback)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "")
    assert "terminated" in err.splitlines()
    assert not (workplace / "predictions.csv").exists()


@pytest.mark.torchrun
def test_a_process_may_have_no_share_of_the_images(trained, workplace):
    best = str(trained / "checkpoints" / "best.ckpt")
    process = start("predict", "--ckpt_path", best, "--images", "digits/1_digits/0.png", *DDP)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    with (workplace / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert out == said_of(rows)
    assert [row["path"] for row in rows] == ["digits/1_digits/0.png"]


@pytest.mark.torchrun
def test_two_processes_score_and_predict_as_one(trained, workplace, capsys):
    # 60 images: 12 for validation, in batches of at most 5, so that the processes have unequal shares.
    best = ["--ckpt_path", str(trained / "checkpoints" / "best.ckpt")]
    score = ["validate", *best, "--data.batch_size", "5"]
    predict = ["predict", *best, "--images", "digits", "--output"]
    assert main(score) == 0
    of_one = capsys.readouterr().out
    assert main([*predict, "one.csv"]) == 0
    said = capsys.readouterr().out.replace("one.csv", "two.csv")
    assert said.startswith("60 images")
    for command, expected in ((score, of_one), ([*predict, "two.csv"], said)):
        process = start(*command, *DDP)
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert out == expected
    one, two = (list(csv.reader((workplace / name).open())) for name in ("one.csv", "two.csv"))
    assert len(one) == 61
    assert one == two


@pytest.mark.torchrun
def test_two_processes_train_and_resume_together(workplace, capsys):
    fit = ["fit", "--config", TINY, "--data.batch_size", "5", *DDP]
    process = start(*fit)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.count("validation accuracy") == 1
    run = workplace / RUNS / "version_0"
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    reported = json.loads((run / "summary.json").read_text())
    assert main(["validate", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]) == 0
    of_one = capsys.readouterr().out
    assert re.search(rf"val_accuracy +{reported['val_accuracy']:.4f}", of_one)
    of_two = reported["history"][reported["best_epoch"] - 1]
    assert re.search(rf"val_loss +{of_two['val_loss']:.4f}", of_one)

    kill = ["--trainer.callbacks+", "tests.test_processes.Kill", "--trainer.callbacks.epoch", "2"]
    process = start(*fit, "--name", "killed", *kill)
    process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL
    last = [workplace / "runs" / name / "version_0" / "checkpoints" / "last.ckpt" for name in ("custom_cnn", "killed")]
    torchrun = ["--nproc-per-node", "2", "-m", "lightning_modules"]
    resume = ["--name", "resumed", "--ckpt_path", str(last[1])]
    process = start(*torchrun, *fit, *resume, module="torch.distributed.run")
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert out.count("validation accuracy") == 1
    assert [path.name for path in (workplace / "runs" / "resumed").iterdir()] == ["version_0"]
    assert_same_weights(last[0], workplace / "runs" / "resumed" / "version_0" / "checkpoints" / "last.ckpt")
