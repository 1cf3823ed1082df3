"""What all commands do with their arguments, and with what goes wrong."""

import argparse
import sys
from collections.abc import Callable

from datamodules.errors import exit_status
from datamodules.imports import HELP, OPTION, import_modules


def run_command(
    parser: argparse.ArgumentParser,
    command: Callable[[argparse.Namespace], None],
    args: list[str] | None,
) -> int:
    """Import the modules that are named, parse the options and run the command; returns its exit status.

    Args:
        parser: Of the options, but for ``--import``.
        command: Takes the options.
        args: The arguments; None for those of this process.
    """

    def parsed() -> None:
        command(parser.parse_args(import_modules(sys.argv[1:] if args is None else args)))

    return exit_status(parsed)


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """Show ``--import`` in the help; ``run_command`` has taken it when the options are parsed."""
    parser.add_argument(OPTION, metavar="MODULE", help=HELP)
