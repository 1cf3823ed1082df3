"""The tab that searches: with an image, a part of one, several together, or several one by one."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import gradio as gr
from PIL import Image

from datamodules.errors import UserError
from datamodules.images import ImageError, find_images
from retrieval.app.client import LISTEN, Upload, publish, sendable, sentence, stored
from retrieval.app.pictures import GALLERY, THUMBNAIL, blank, marked, scale, thumbnail
from retrieval.app.question import MAX_QUERIES, Question, check_count
from retrieval.explain import explainer
from retrieval.index import ImageIndex, Match
from retrieval.query import Example, Region, describe, parse_region

MAX_MATCHES = 20
SAMPLES = 12
ANY = "any label"

# What has been found may lie outside of the window, above a sample that was chosen or below the fold of a phone.
SCROLL = """() => {
    const { top, bottom } = document.querySelector('#status').getBoundingClientRect()
    if (top < 0 || bottom > innerHeight - 150) document.querySelector('#query').scrollIntoView({ behavior: 'smooth' })
}"""

Thumbnails = list[tuple[Image.Image, str]]


def search_tab(page: gr.Blocks, tab: gr.Tab, index: ImageIndex, samples: Sequence[Path]) -> None:
    """A query on the left, and what it finds on the right; on a phone one below the other."""
    with gr.Row(elem_id="search"):
        with gr.Column(scale=1, min_width=280):
            query = gr.Image(
                sources=["upload", "clipboard"],
                label="Query image",
                height=280,
                format="jpeg",
                buttons=[],
                elem_id="query",
            )
            with gr.Row(elem_id="keep"):
                like = gr.Button("+ Like this", size="sm", interactive=False)
                unlike = gr.Button("- Unlike this", size="sm", interactive=False)
            kept = gr.Gallery(
                label="Together with: choose one to remove it",
                columns=4,
                format="jpeg",
                visible=False,
                elem_id="kept",
                **GALLERY,
            )
            part = gr.Textbox(
                "",
                label="Part (left, top, right, bottom)",
                placeholder="all, or click two corners",
                max_lines=1,
                elem_id="part",
            )
            if samples:
                offered = gr.Gallery(
                    [(thumbnail(path), "") for path in samples],
                    label="Samples: choose one to search with it",
                    columns=4,
                    format="jpeg",
                    elem_id="samples",
                    **GALLERY,
                )
            several = gr.File(
                file_count="multiple",
                file_types=["image"],
                label="Several queries at once",
                height=140,
                elem_id="several",
            )
        with gr.Column(scale=3, min_width=280):
            with gr.Row(elem_id="settings"):
                k = gr.Slider(1, MAX_MATCHES, 4, step=1, label="How many", elem_id="k")
                threshold = gr.Number(
                    2,
                    minimum=0,
                    maximum=2,
                    step=0.05,
                    label="Largest distance",
                    placeholder="any",
                    elem_id="threshold",
                )
                label = gr.Dropdown([ANY], value=ANY, label="Label", elem_id="label")
                similar = gr.Checkbox(
                    label="Only what is similar",
                    info="leaves out what is no closer than chance",
                    elem_id="unlike-chance",
                )
                explained = gr.Checkbox(label="Show which regions are similar", elem_id="explain")
            status = gr.Textbox(
                "Choose a query image.", label="Result", interactive=False, elem_id="status", lines=1, max_lines=6
            )
            shown = gr.Gallery(
                label="Matches: choose one to search with it",
                columns=4,
                format="webp",
                visible=False,
                elem_id="matches",
                **GALLERY,
            )
    # What is searched with, and the path of each image in the gallery: no client gets to choose them.
    question, found = gr.State(Question()), gr.State([])
    asked = [question, query, part, kept, like, unlike, several]
    settings = [k, label, threshold, similar, explained]

    def show(question: Question, *options: Any) -> tuple[str, Any, Any]:
        return _show(index, question, *options)

    def ask(event: Callable[..., Any], step: Callable[..., Any], *inputs: Any) -> None:
        """Ask something else, and show what is found: a setting that is changed meanwhile is for this one as well."""
        told = event(step, [question, *inputs], asked, **LISTEN)
        searched = told.success(show, [question, *settings], [status, shown, found], **LISTEN, concurrency_id="search")
        searched.success(None, None, None, js=SCROLL)

    def choose(question: Question, image: Upload) -> tuple[Any, ...]:
        return _asked(lambda: question.choose(stored(image)))

    def choose_sample(question: Question, chosen: gr.SelectData) -> tuple[Any, ...]:
        return _asked(lambda: question.choose(_chosen(samples, chosen)))

    def choose_match(question: Question, paths: list[Path], chosen: gr.SelectData) -> tuple[Any, ...]:
        return _asked(lambda: question.choose(_chosen(paths, chosen)))

    def remove(question: Question, chosen: gr.SelectData) -> tuple[Any, ...]:
        return _asked(lambda: question.remove(chosen.index))

    def click(question: Question, chosen: gr.SelectData) -> tuple[Any, ...]:
        return _asked(lambda: _click(question, chosen))

    ask(query.upload, choose, query)
    ask(query.clear, lambda question: _asked(lambda: question.choose(None)))
    ask(query.select, click)
    ask(part.submit, lambda question, text: _asked(lambda: replace(question, region=_region(text), corner=None)), part)
    ask(like.click, lambda question: _asked(lambda: question.keep(1.0)))
    ask(unlike.click, lambda question: _asked(lambda: question.keep(-1.0)))
    ask(kept.select, remove)
    ask(shown.select, choose_match, found)
    for changed in (several.upload, several.delete, several.clear):
        ask(changed, lambda _, files: _asked(lambda: Question(several=tuple(map(stored, files or ())))), several)
    if samples:
        ask(offered.select, choose_sample)
    gr.on(
        [tab.select, k.input, label.input, threshold.input, similar.input, explained.input],  # images may have moved
        show,
        [question, *settings],
        [status, shown, found],
        trigger_mode="always_last",  # a slider that is dragged moves many times
        **LISTEN,
        concurrency_id="search",
    )
    labels = known_labels(index)
    page.load(lambda: gr.Dropdown([ANY, *labels()]), None, label, api_visibility="private")

    def answer(
        image: Upload,
        k: int = 4,
        label: str | None = None,
        max_distance: float | Literal["auto"] | None = None,
        region: str | None = None,
        like: list[Upload] | None = None,
        unlike: list[Upload] | None = None,
    ) -> list[dict[str, Any]]:
        try:
            others = [(upload, 1.0) for upload in _listed(like)] + [(upload, -1.0) for upload in _listed(unlike)]
            check_count(1 + len(others))
            first = Example(stored(image), _region(region))
            together = [Example(stored(upload), weight=weight) for upload, weight in others]
            largest = None if max_distance == "auto" else max_distance
            matches = _search(index, [first, *together], k, label, largest, similar=max_distance == "auto")
        except UserError as error:
            raise gr.Error(sentence(error, index), print_exception=False) from error
        return [
            {"file": _name(index, m), "distance": m.distance, "label": m.label and sendable(m.label)} for m in matches
        ]

    description = "The images that are most similar to one, a part of it, or several together: file, distance, label."
    publish("search", description, answer)


def _asked(step: Callable[[], Question]) -> tuple[Any, ...]:
    """A question, and the components that show it: image, part, kept images, buttons, several."""
    try:
        question = step()
    except UserError as error:
        raise gr.Error(sentence(error), print_exception=False) from error
    picture: Any = None
    if question.chosen is not None:
        picture = gr.skip()  # what can't be read stays as the browser shows it; the search says why
        with suppress(ImageError):
            picture = marked(question.chosen, question.region, question.corner)
    text = "" if question.region is None else ",".join(map(str, question.region))
    chips = gr.Gallery([_chip(example) for example in question.kept], visible=bool(question.kept))
    keep = gr.Button(interactive=question.chosen is not None)
    return question, picture, text, chips, keep, keep, gr.skip() if question.several else None


def _chip(example: Example) -> tuple[Image.Image, str]:
    picture = blank()
    with suppress(ImageError):
        picture = marked(Path(str(example.image)), example.region)
    return picture, f"{'-' if example.weight < 0 else '+'} {_named(example)}"


def _named(example: Example) -> Example:
    """An example without the folder that its image is in."""
    return replace(example, image=sendable(Path(str(example.image)).name))


def _click(question: Question, chosen: gr.SelectData) -> Question:
    if question.chosen is None:
        return question
    x, y = (round(place / scale(question.chosen)) for place in chosen.index)
    return question.click(x, y)


def _region(text: str | None) -> Region | None:
    return parse_region(str(text)) if str(text or "").strip() else None


def _listed(uploads: list[Upload] | None) -> list[Upload]:
    """The files that a program has sent, which may be anything."""
    if not isinstance(uploads, list | None):
        raise UserError("several images are a list")
    return uploads or []


def _chosen(paths: Sequence[Path], chosen: gr.SelectData) -> Path:
    """The file of an image in a gallery.

    Raises:
        UserError: It is no longer shown, or can't be read.
    """
    place = chosen.index
    if not isinstance(place, int) or not 0 <= place < len(paths):
        raise UserError("That image is no longer shown: search again.")
    path = paths[place]
    try:
        thumbnail(path)
    except ImageError as error:
        raise UserError(str(error).removeprefix(f"{path.parent}{os.sep}")) from error
    return path


def _search(
    index: ImageIndex,
    examples: list[Example],
    k: float,
    label: str | None,
    threshold: float | None,
    similar: bool,
) -> list[Match]:
    if not isinstance(k, int | float) or not 1 <= k <= MAX_MATCHES:
        raise UserError(f"the number of matches must lie in 1 to {MAX_MATCHES}")
    if not isinstance(threshold, int | float | None):
        raise UserError("the largest distance must be a number, auto, or empty")
    wanted = None if label in (None, ANY) else label
    matches = index.search(examples, int(k), label=wanted, max_distance="auto" if similar else None)
    return [match for match in matches if threshold is None or match.distance <= threshold]


def _show(
    index: ImageIndex,
    question: Question,
    k: int,
    label: str,
    threshold: float | None,
    similar: bool,
    explained: bool,
) -> tuple[str, Any, Any]:
    """Text, gallery, and the path of each image in it; several queries are rows that begin with the query."""
    if question.corner is not None:
        return "Now click the opposite corner.", gr.skip(), gr.skip()
    queries = question.queries
    if not queries:
        return "Choose a query image.", gr.Gallery([], visible=False), []
    rows = len(queries) > 1
    shown: Thumbnails = []
    paths: list[Path] = []
    said: list[str] = []
    for examples in queries:
        first = Path(str(examples[0].image))
        name = describe([_named(example) for example in examples])
        try:
            matches = _search(index, examples, k, label, threshold, similar)
            row = [(thumbnail(first), f"Query\n{name}")] if rows else []
            picture = explainer(examples, index.encoder, THUMBNAIL) if explained else thumbnail
            row += [_shown(match, picture, index) for match in matches]
        except UserError as error:
            said.append(sentence(error, index))
            continue
        shown += row
        paths += [first] * rows + [match.path for match in matches]
        if rows:  # the next row begins at the left
            missing = int(k) - len(matches)
            shown += [(blank(), "")] * missing
            paths += [first] * missing
        else:
            said.append(f"{len(matches)} matches for {name}." if matches else f"No match for {name}.")
    if rows:
        limit = f" The first {MAX_QUERIES} are searched." if len(question.several) > MAX_QUERIES else ""
        said.insert(0, f"{len(queries) - len(said)} queries, one a row.{limit}")
    columns = int(k) + 1 if rows else min(4, max(len(shown), 2))
    gallery = gr.Gallery(shown, columns=columns, visible=bool(shown), elem_classes=["rows"] if rows else [])
    return "\n".join(said), gallery, paths


def _shown(match: Match, picture: Callable[[Path], Image.Image], index: ImageIndex) -> tuple[Image.Image, str]:
    """A match as it is shown, and its caption; it may be gone by now, or lie on another machine."""
    label = f" · {sendable(match.label)}" if match.label is not None else ""
    caption = f"{match.distance:.3f}{label}\n{_name(index, match)}"
    try:
        return picture(match.path), caption
    except ImageError:
        return blank(), f"{caption}\n(can't be shown)"


def _name(index: ImageIndex, match: Match) -> str:
    """The path of a match that a client may know: relative to the folder."""
    return sendable(str(match.path.relative_to(index.folder)))


def known_labels(index: ImageIndex) -> Callable[[], list[str]]:
    """What lists the labels to choose from, anew once the index has changed: on Milvus that reads all rows."""

    @lru_cache(maxsize=1)
    def listed(revision: str) -> list[str]:
        return [label for label in index.store.labels() if label == sendable(label)]

    def labels() -> list[str]:
        with suppress(UserError):  # which a search says
            return listed(index.store.revision())
        return []

    return labels


def find_samples(folder: Path, limit: int = SAMPLES) -> list[Path]:
    """Query images to choose from: the first of a folder that can be read; none if there is no such folder."""
    paths: list[Path] = []
    with suppress(UserError):
        paths = find_images(folder)
    found: list[Path] = []
    for path in paths:
        with suppress(UserError):
            thumbnail(path)
            found.append(path)
        if len(found) == limit:
            break
    return found
