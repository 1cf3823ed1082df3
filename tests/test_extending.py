"""The examples of docs/extending.md, in a folder outside of the package, in fresh processes."""

import os
import re
import shlex
import subprocess
import sys
from functools import partial

import pytest

from lightning_modules import commands
from lightning_modules.cli import main as train
from retrieval.cli import main as search
from tests.conftest import REPOSITORY, draw_digit

SECTIONS = dict(
    re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", (REPOSITORY / "docs" / "extending.md").read_text(), re.M | re.S)
)


def test_there_are_examples_of_all_that_can_be_extended():
    assert list(SECTIONS) == ["A network", "A data set", "An augmentation", "An encoder", "A command"]


@pytest.mark.docs
@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_runs_from_a_folder_outside_of_the_package(section, tmp_path, monkeypatch, capsys):
    for name, text in re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", SECTIONS[section], re.M | re.S):
        (tmp_path / name).write_text(text)
    for digit in range(2):
        (tmp_path / "pictures" / str(digit)).mkdir(parents=True)
        for seed in range(3):
            draw_digit(digit, seed, 8).save(tmp_path / "pictures" / str(digit) / f"{seed}.png")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", SECTIONS[section], re.M | re.S)
        for line in block.splitlines()
    ]
    assert lines
    for command in lines:
        args = [sys.executable, *shlex.split(command)[1:]]
        finished = subprocess.run(args, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert finished.returncode == 0, f"{command}\n{finished.stderr[-3000:]}"
    if section == "A network":
        monkeypatch.chdir(tmp_path)
        check_refusal(capsys)


def check_refusal(capsys):
    """Without the module the message says which option to add, and nothing imports it."""
    run = "runs/mynet/version_1"
    checkpoint = f"{run}/checkpoints/best.ckpt"
    for command, *args in (
        (train, "test", "--ckpt_path", checkpoint),
        (train, "predict", "--ckpt_path", "MyNet", "--images", "pictures"),
        (partial(commands.run, "export"), run, "Other"),
        (partial(commands.run, "compare"), run),
        (search, "index", "pictures", "--index", "other.sqlite", "--encoder", checkpoint),
    ):
        assert command(args) == 1
        assert "made with mynet.MLP, which is not imported; add --import mynet" in capsys.readouterr().err
        assert "mynet" not in sys.modules
