"""Read the numbers on pictures: ``python -m lightning_modules read FILE …``."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from datamodules.commands import add_import_option, run_command
from datamodules.errors import UserError
from datamodules.figures import check_figure, save_figure
from datamodules.images import ImageError, named_images, read_image, unreadable
from datamodules.ink import SIDE
from datamodules.text import printable, short_name
from datamodules.writing import check_output, write_csv
from lightning_modules.embedded import READER
from lightning_modules.exported import PROBABILITIES, ExportedNetwork, program_outputs
from lightning_modules.number_reading import FileNumbers, Reader, read_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("path", "row", "text", "confidence", "left", "top", "width", "height")
MAX_SHOWN = 12  # pictures in a figure
SHOWN = 1600  # pixels of a side of one: a figure shows no more


def load_reader(path: Path) -> Reader:
    """The reader of a checkpoint or an exported folder, whose program, if there is one, is run without PyTorch.

    Raises:
        UserError: As ``load_network``.
    """
    if "columns" in program_outputs(path).get(PROBABILITIES, ()):
        return ExportedNetwork(path)
    from lightning_modules.checkpoint import load_network
    from lightning_modules.networks.line_reader import LineReader

    return load_network(path, LineReader)


def read_pictures(model: Reader, paths: list[Path], pattern: re.Pattern[str] | None = None) -> list[FileNumbers]:
    """Read the numbers on each picture.

    Raises:
        UserError: Some can't be read as images; all of these are named.
    """
    files, broken = [], []
    for path in tqdm(paths, desc="Reading", delay=2, leave=False):
        try:
            files.append(read_file(model, path, pattern)[0])
        except ImageError as error:
            broken.append(str(error))
    if broken:
        raise unreadable(broken, len(paths))
    return files


def plot_numbers(files: list[FileNumbers]) -> "Figure":
    """The pictures with what was read on each; the first 12 of many."""
    from matplotlib.figure import Figure

    shown = files[:MAX_SHOWN]
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(6.5 * columns, 4.5 * rows + 0.3), layout="constrained")
    for place, file in enumerate(shown):
        axes = figure.add_subplot(rows, columns, place + 1)
        marked = file.mark(read_image(file.path, channels=3, side=SIDE))
        marked.thumbnail((SHOWN, SHOWN))
        axes.imshow(np.asarray(marked))
        axes.set_axis_off()
        said = "" if file.numbers else ": no number found"
        axes.set_title(f"{short_name(file.path.name, 40)}{said}", fontsize=9, parse_math=False)
    if len(files) > len(shown):
        figure.suptitle(f"The first {len(shown)} of {len(files)} images", fontsize=9)
    return figure


def describe(file: FileNumbers) -> list[str]:
    """A line for each number, marked where it is doubtful."""
    name = printable(str(file.path))
    return [
        f"{name}  {number.row + 1}  {number.text}  {number.confidence:.0%}{'  doubtful' if number.doubtful else ''}"
        for number in file.numbers
    ]


def main(args: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lightning_modules read",
        description="Read the numbers on pictures; prints file, row, number and confidence of each.",
    )
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="image files, or folders of them")
    parser.add_argument(
        "--ckpt_path", type=Path, default=READER, metavar="FILE", help="a reader of yours (default: the package's own)"
    )
    parser.add_argument("--pattern", metavar="REGEX", help=r"what each number is to be, such as '\d{4}'")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"a CSV file to write: {', '.join(COLUMNS)}")
    parser.add_argument("--json", action="store_true", help="print JSON, a line for each number, with the same names")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="a picture of what was read (PNG, PDF, SVG)")
    add_import_option(parser)

    def command(options: argparse.Namespace) -> None:
        try:
            pattern = None if options.pattern is None else re.compile(options.pattern)
        except re.error as error:
            raise UserError(f"--pattern {options.pattern}: not a regular expression ({error})") from error
        if options.output is not None:
            check_output(options.output)
        if options.figure is not None:
            check_figure(options.figure)
        paths, notes = named_images(options.paths)
        for note in notes:
            print(note, file=sys.stderr)
        files = read_pictures(load_reader(options.ckpt_path), paths, pattern)
        for file in files:
            for line in map(json.dumps, file.rows()) if options.json else describe(file):
                print(line)
            if not file.numbers:
                print(f"{printable(str(file.path))}: no number found", file=sys.stderr)
        if options.output is not None:
            write_csv(options.output, [COLUMNS, *(tuple(row.values()) for file in files for row in file.rows())])
        if options.figure is not None:
            save_figure(plot_numbers(files), options.figure)

    return run_command(parser, command, args)
