"""The errors that are the user's to put right, and what a command does with them."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in the input: the message says what was wrong, with which file, and what to do."""


class Terminated(Exception):  # noqa: N818 - what happened, not what went wrong
    """The process was asked to end (SIGTERM), as a scheduler or ``kill`` does."""


def reason(error: OSError) -> str:
    """What the operating system says, such as ``no such file or directory``."""
    return (error.strerror or str(error)).lower()


def exit_status(command: Callable[[], object]) -> int:
    """Run a command; returns its exit status.

    0, 1 with one line on stderr for a user's mistake, 130 for Ctrl-C, 143 where it was terminated.

    Errors of the operating system (no room, no permission) count as the user's; all others are ours and pass.
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
        mistake = _mistake_behind(error)
        if mistake is None:
            raise
        _say(f"error: {mistake}")
        return 1
    return 0


def _say(line: str) -> None:
    """Print a line on stderr, not behind a progress bar that was left open."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
    else:
        print(line, file=sys.stderr)


def _mistake_behind(error: BaseException | None) -> str | None:
    """The user's mistake that an exception comes from: an argument parser wraps what a constructor raises."""
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, OSError) and error.errno is not None:
            return f"{error.filename}: {reason(error)}" if error.filename else reason(error)
        error = error.__cause__ or error.__context__
    return None
