"""The errors that are the user's to put right, and what a command does with them."""

import os
import sys
import traceback
from collections.abc import Callable

TRACE = "DIGITDOODLE_TRACE"  # environment variable: set it to see where a mistake came to light


class UserError(Exception):
    """A mistake in the input: the message says what was wrong, with which file, and what to do."""


class Terminated(Exception):  # noqa: N818 - what happened, not what went wrong
    """The process was asked to end (SIGTERM), as a scheduler or ``kill`` does."""


def last_line(error: Exception) -> str:
    """The last line of what an error says, which is the one that matters; its kind where it says nothing."""
    return str(error).strip().rpartition("\n")[2] or type(error).__name__


def reason(error: OSError) -> str:
    """What the operating system says, such as ``no such file or directory``."""
    return (error.strerror or str(error)).lower()


def exit_status(command: Callable[[], object]) -> int:
    """Run a command; returns its exit status.

    0, 1 with one line on stderr for a user's mistake, 130 for Ctrl-C, 143 where it was terminated.

    Errors of the operating system (no room, no permission) count as the user's; all others are ours and pass. With
    ``DIGITDOODLE_TRACE=1`` in the environment the stack trace of a user's mistake is printed, too.
    """
    try:
        command()
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning's Trainer ends with status 1 after Ctrl-C.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        _say("interrupted")
        return 130
    except Terminated:
        _say("terminated")
        return 143
    except Exception as error:
        mistake = mistake_behind(error)
        if mistake is None:
            raise
        if os.environ.get(TRACE, "0") not in ("", "0"):
            traceback.print_exception(error)
        _say(f"error: {mistake}")
        return 1
    return 0


def _say(line: str) -> None:
    """Print a line on stderr, not behind a progress bar that was left open."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)


def mistake_behind(error: BaseException) -> str | None:
    """The user's mistake that an exception comes from: an argument parser wraps what a constructor raises.

    An error of the operating system is such a mistake where it was raised or wrapped, not where it was merely being
    handled when another error struck.
    """
    cause: BaseException | None = error
    wrapped = True
    while cause is not None:
        if isinstance(cause, UserError):
            return str(cause)
        if wrapped and isinstance(cause, OSError) and cause.errno is not None:
            return f"{cause.filename}: {reason(cause)}" if cause.filename else reason(cause)
        wrapped = wrapped and cause.__cause__ is not None
        cause = cause.__cause__ or cause.__context__
    return None
