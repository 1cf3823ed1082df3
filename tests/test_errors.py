"""What a command does with an error: a line for the user's mistake, a stack trace for ours."""

import errno
from collections.abc import Callable

import pytest

from datamodules.errors import TRACE, UserError, exit_status


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "runs")


def wrapped() -> None:
    try:
        full()
    except OSError as error:
        raise ValueError("a parser") from error


def handled_by_a_parser() -> None:
    try:
        raise UserError("val_fraction must lie in (0, 1)")
    except UserError:
        raise ValueError("a parser")  # noqa: B904 - as some parsers do


def bug_of_ours() -> None:
    try:
        full()
    except OSError:
        _ = {}["cleanup"]


@pytest.mark.parametrize(
    ("command", "line"),
    [
        (full, "error: runs: no space left on device"),
        (wrapped, "error: runs: no space left on device"),
        (handled_by_a_parser, "error: val_fraction must lie in (0, 1)"),
    ],
)
def test_a_mistake_is_one_line(command: Callable[[], None], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(command) == 1
    assert capsys.readouterr().err == f"{line}\n"


def test_a_bug_that_strikes_while_an_error_of_the_system_is_handled_keeps_its_trace() -> None:
    with pytest.raises(KeyError):
        exit_status(bug_of_ours)


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("0", False), ("", False)])
def test_traces_can_be_asked_for(
    value: str, shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(TRACE, value)
    assert exit_status(wrapped) == 1
    err = capsys.readouterr().err
    assert ("in wrapped" in err) == shown
    assert err.endswith("error: runs: no space left on device\n")
