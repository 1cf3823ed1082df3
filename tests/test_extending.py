"""The examples of docs/extending.md, in a folder outside of the package, in fresh processes."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, draw_digit

SECTIONS = dict(
    re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", (REPOSITORY / "docs" / "extending.md").read_text(), re.M | re.S)
)


def test_there_are_examples_of_all_that_can_be_extended():
    assert list(SECTIONS) == ["A network", "A data set", "An augmentation", "An encoder", "A command"]


@pytest.mark.parametrize("section", SECTIONS)
def test_an_example_runs_from_a_folder_outside_of_the_package(section, tmp_path):
    for name, text in re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", SECTIONS[section], re.M | re.S):
        (tmp_path / name).write_text(text)
    for digit in range(2):
        (tmp_path / "pictures" / str(digit)).mkdir(parents=True)
        for seed in range(3):
            draw_digit(digit, seed, 8).save(tmp_path / "pictures" / str(digit) / f"{seed}.png")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    commands = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```", SECTIONS[section], re.M | re.S)
        for line in block.splitlines()
    ]
    assert commands
    for command in commands:
        args = [sys.executable, *shlex.split(command)[1:]]
        finished = subprocess.run(args, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert finished.returncode == 0, f"{command}\n{finished.stderr[-3000:]}"
    if section == "A network":
        check_refusal(tmp_path, environment)


def check_refusal(folder, environment):
    """Without the module the message says which option to add, and nothing imports it."""
    run = "runs/mynet/version_1"
    for command in (
        f"-m lightning_modules test --ckpt_path {run}/checkpoints/best.ckpt",
        f"-m lightning_modules.export {run} Other",
        f"-m lightning_modules.compare {run}",
        "-m lightning_modules predict --ckpt_path MyNet --images pictures",
        f"-m retrieval index pictures --index other.sqlite --encoder {run}/checkpoints/best.ckpt",
    ):
        args = [sys.executable, *command.split()]
        finished = subprocess.run(args, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
        assert finished.returncode == 1
        assert "made with mynet.MLP, which is not imported; add --import mynet" in finished.stderr
        assert "Traceback" not in finished.stderr
