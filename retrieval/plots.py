"""Figures of search results and findings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from datamodules.images import convert_image, read_image
from datamodules.text import short_name
from retrieval.audit import Finding
from retrieval.encoders.base import Encoder
from retrieval.explain import explainer
from retrieval.index import Match
from retrieval.query import Example, Query, examples_of

COLUMNS = 7  # more images in a row can't be told apart on a page
SIDE = 480  # pixels that an image is drawn with at most


def plot_matches(query: Query, matches: Sequence[Match], encoder: Encoder | None = None) -> Figure:
    """The query and what is similar to it, with distances and labels.

    Args:
        query: An image, the path of one, a part of one, or several, as for ``ImageIndex.search``.
        matches: What ``ImageIndex.search`` found for it.
        encoder: Shows on each match which regions made it similar: the encoder that the index was made with.

    Raises:
        UserError: An image can't be read.
    """
    return plot_results([(query, matches)], encoder)


def plot_results(results: Sequence[tuple[Query, Sequence[Match]]], encoder: Encoder | None = None) -> Figure:
    """As ``plot_matches``, for several queries below each other."""
    most = max((len(matches) for _, matches in results), default=0)
    rows_each = -(-(most + 1) // COLUMNS)
    columns = -(-(most + 1) // rows_each)
    figure = Figure(figsize=(2.3 * columns, 3.1 * rows_each * len(results)), layout="constrained")
    for place, (query, matches) in enumerate(results):
        first = place * rows_each * columns
        shape = (rows_each * len(results), columns)
        axes = figure.add_subplot(*shape, first + 1)
        name = "" if isinstance(query, Image.Image) else _caption(query)
        _show(axes, _draw_query(query), "Query Image", name)
        axes.title.set_fontweight("bold")
        picture = _thumbnail if encoder is None else explainer(query, encoder, SIDE)
        for number, match in enumerate(matches, 1):
            axes = figure.add_subplot(*shape, first + number + 1)
            label = f"\n{short_name(match.label)}" if match.label is not None else ""
            text = f"{match.distance:.3f}{label}\n{short_name(match.path.name)}"
            _show(axes, picture(match.path), f"Similar Image {number}", text)
    return figure


def _show(axes: Axes, image: Image.Image, title: str, text: str) -> None:
    axes.imshow(np.asarray(image))
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(text, fontsize=8, parse_math=False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _caption(query: Query) -> str:
    """The names of a query's files, one a line."""
    lines = []
    for example in examples_of(query):
        if not isinstance(example.image, Image.Image):
            example = replace(example, image=Path(example.image).name)
        lines.append(short_name(f"{'- ' if example.weight < 0 else ''}{example}"))
    return "\n".join(lines)


def _draw_query(query: Query) -> Image.Image:
    """The images of a query side by side; what is outside of a region is pale, and what is not looked for crossed."""
    drawn = [_draw_example(example) for example in examples_of(query)]
    sheet = Image.new("RGB", (sum(image.width for image in drawn), max(image.height for image in drawn)), "white")
    left = 0
    for image in drawn:
        sheet.paste(image, (left, 0))
        left += image.width
    return sheet


def _draw_example(example: Example) -> Image.Image:
    if isinstance(example.image, Image.Image):
        image = convert_image(example.image, channels=3)
    else:
        image = read_image(Path(example.image), channels=3, all_pixels=example.region is not None)
    if example.region is not None:
        pale = Image.blend(image, Image.new("RGB", image.size, "white"), 0.7)
        pale.paste(example.cut(image), example.region[:2])
        image = pale
    image.thumbnail((SIDE, SIDE))
    if example.weight < 0:
        brush = ImageDraw.Draw(image)
        for ends in ((0, 0, *image.size), (0, image.height, image.width, 0)):
            brush.line(ends, fill="red", width=SIDE // 60)
    return image


def _thumbnail(path: Path) -> Image.Image:
    image = read_image(path, channels=3)
    image.thumbnail((SIDE, SIDE))
    return image


def plot_findings(folder: Path, findings: Sequence[Finding], most: int = 40) -> Figure:
    """A contact sheet: each finding's two images side by side, with their labels and distance.

    Args:
        folder: What the findings' paths are relative to.
        findings: What ``audit`` found.
        most: Show no more than this many of a kind.
    """
    kinds: dict[str, list[Finding]] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    shown = [finding for group in kinds.values() for finding in group[:most]]
    across = 4
    rows = max(-(-len(shown) // across), 1)
    figure = Figure(figsize=(3.6 * across, 2.3 * rows + 0.6), layout="constrained")
    for place, finding in enumerate(shown):
        for side, (path, label) in enumerate(((finding.path, finding.label), (finding.other, finding.other_label))):
            axes = figure.add_subplot(rows, 2 * across, 2 * place + side + 1)
            title = finding.kind if side == 0 else f"{finding.distance:.3f}"
            _show(axes, _thumbnail(folder / path), title, f"{short_name(label or '')}\n{short_name(Path(path).name)}")
    counts = ", ".join(f"{len(group)} {kind}" for kind, group in kinds.items())
    figure.suptitle(f"{counts or 'nothing'} found")
    return figure
