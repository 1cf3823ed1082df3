"""The page: search, and recognise, in the browser."""

import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

# Read when gradio is imported: no telemetry, and no statistics after each request.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000")

import gradio as gr
import numpy as np
import numpy.typing as npt
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from datamodules.errors import UserError, reason
from datamodules.images import ImageError, find_images, read_bytes, read_image
from datamodules.ink import SIDE
from lightning_modules.networks.line_reader import LineReader
from lightning_modules.plots import mark_numbers
from lightning_modules.reading import Number, read_picture
from retrieval.app.recognition import Recogniser
from retrieval.explain import explainer
from retrieval.index import ImageIndex, Match

MAX_MATCHES = 20
MAX_QUERIES = 16  # in one request
SAMPLES = 12
AT_ONCE = 16  # requests that are decoded and drawn at the same time: bounds the memory
THUMBNAIL = 320  # longer side, in pixels
PAPER = 280  # side of the drawing, in pixels
DIGIT = 112  # side that a training image is shown with at least
ANY = "any label"
MAX_CHARACTERS = 400  # of a message: no reader wants more

CSS = """
footer { display: none !important }
.matches .caption-label, .matches .caption { white-space: pre-line }
.grid-wrap { padding-top: 2.2rem !important } /* room for the label */
#samples .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important }
.or, .min_value, .max_value { color: var(--body-text-color) !important }
@media (max-width: 640px) { .matches .grid-container { grid-template-columns: repeat(2, 1fr) !important } }
"""
THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))

# Files come as Gradio has checked and stored them, not as it would decode them: that is ours to do.
LISTEN: dict[str, Any] = {"preprocess": False, "concurrency_limit": AT_ONCE, "api_visibility": "private"}
GALLERY: dict[str, Any] = {
    "height": "auto",
    "object_fit": "contain",
    "allow_preview": False,
    "interactive": False,
    "buttons": [],
}

Thumbnails = list[tuple[Image.Image, str]]
Upload = dict[str, Any] | None  # Gradio's FileData


def build_page(
    index: ImageIndex, recogniser: Recogniser | None, samples: Sequence[Path] = (), reader: LineReader | None = None
) -> gr.Blocks:
    """The page over an index, and over a classifier and a reader if there are some.

    Args:
        index: What is searched; brought up to date by other processes, if at all.
        recogniser: What recognises drawings; None leaves that tab out.
        samples: Query images to choose from.
        reader: What reads numbers; None leaves that tab out.
    """
    page: gr.Blocks
    with gr.Blocks(
        title="DigitDoodle",
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(600, 3600),  # seconds: uploads and pictures that were shown are forgotten after an hour
    ) as page:
        gr.Markdown("# DigitDoodle")
        with gr.Tabs():
            with gr.Tab("Search"):
                _search_tab(page, index, samples)
            if recogniser is not None:
                with gr.Tab("Recognise"):
                    _recognise_tab(recogniser)
            if reader is not None:
                with gr.Tab("Read"):
                    _read_tab(reader)
    return page


def _search_tab(page: gr.Blocks, index: ImageIndex, samples: Sequence[Path]) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            query = gr.Image(sources=["upload", "clipboard"], label="Query image", height=280, elem_id="query")
            if samples:
                offered = gr.Gallery(
                    [(_thumbnail(path), "") for path in samples],
                    label="Samples: choose one to search with it",
                    columns=4,
                    format="jpeg",
                    elem_id="samples",
                    **GALLERY,
                )

                def search_with_sample(chosen: gr.SelectData) -> str:
                    return _chosen(query, samples, chosen)

                offered.select(search_with_sample, None, query, api_visibility="private")
            several = gr.File(
                file_count="multiple",
                file_types=["image"],
                label="Several queries at once",
                height=140,
                elem_id="several",
            )
        with gr.Column(scale=3, min_width=280):
            with gr.Row():
                k = gr.Slider(1, MAX_MATCHES, 4, step=1, label="How many", elem_id="k")
                threshold = gr.Slider(0, 2, 2, step=0.01, label="Largest distance", elem_id="threshold")
                label = gr.Dropdown([ANY], value=ANY, label="Label", elem_id="label")
                explained = gr.Checkbox(label="Show which regions are similar", elem_id="explain")
            status = gr.Textbox(
                "Choose a query image.", label="Result", interactive=False, elem_id="status", lines=1, max_lines=6
            )
            shown = gr.Gallery(
                label="Matches: choose one to search with it",
                columns=4,
                format="jpeg",
                elem_id="matches",
                elem_classes="matches",
                **GALLERY,
            )
    # The path of each image in the gallery, and of those that were last searched with: no client gets to choose them.
    found, asked = gr.State([]), gr.State([])
    settings = [k, label, threshold, explained]

    def ask_several(image: Upload, images: list[Upload] | None) -> list[Path]:
        return _paths(*images or []) or _paths(image)

    def show(queries: list[Path], *options: Any) -> tuple[str, Any, list[str]]:
        return _show(index, queries, *options)

    def search_with_match(chosen: gr.SelectData, paths: list[str]) -> str:
        return _chosen(query, paths, chosen)

    page.load(lambda: gr.Dropdown([ANY, *_labels(index)]), None, label, api_visibility="private")
    what, outputs = [asked, *settings], [status, shown, found]
    listen = {**LISTEN, "concurrency_id": "search"}
    # Noted before it is searched with: a setting that is changed meanwhile is for this one as well.
    query.change(_paths, query, asked, **LISTEN).success(show, what, outputs, **listen)
    several.change(ask_several, [query, several], asked, **LISTEN).success(show, what, outputs, **listen)
    gr.on(
        [k.input, label.input, threshold.input, explained.input],
        show,
        what,
        outputs,
        trigger_mode="always_last",  # a slider that is dragged moves many times
        **listen,
    )
    shown.select(search_with_match, found, query, **listen)

    def answer(image: Upload, count: float, wanted: str, largest: float) -> list[dict[str, Any]]:
        try:
            matches = _search(index, _path(image), count, wanted, largest)
        except UserError as error:
            raise gr.Error(_sentence(error, index), print_exception=False) from error
        return [
            {"file": _name(index, m), "distance": m.distance, "label": m.label and _sendable(m.label)} for m in matches
        ]

    description = "The images of the collection that are most similar to an image: file, distance, label."
    _publish("search", description, answer, [query, k, label, threshold])


def _publish(name: str, description: str, answer: Callable[..., Any], inputs: list[Any]) -> None:
    """Let programs call a function of the page."""
    gr.Button(visible=False).click(
        answer,
        inputs,
        gr.JSON(visible=False),
        api_name=name,
        api_description=description,
        preprocess=False,
        queue=False,  # one request, one answer
    )


def _chosen(query: gr.Image, paths: Sequence[str | Path], chosen: gr.SelectData) -> str:
    """The file of an image in a gallery, where Gradio may serve it as the next query."""
    place = chosen.index
    if not isinstance(place, int) or not 0 <= place < len(paths):
        raise gr.Error("That image is no longer shown: search again.", print_exception=False)
    path = Path(paths[place])
    try:
        return str(save_bytes_to_cache(read_bytes(path), _sendable(path.name), query.GRADIO_CACHE))
    except ImageError as error:
        raise gr.Error(_sendable(str(error).removeprefix(f"{path.parent}{os.sep}")), print_exception=False) from error


def _search(index: ImageIndex, query: Path, k: float, label: str | None, threshold: float) -> list[Match]:
    if not isinstance(k, int | float) or not 1 <= k <= MAX_MATCHES:
        raise UserError(f"the number of matches must lie in 1 to {MAX_MATCHES}")
    if not isinstance(threshold, int | float):
        raise UserError("the largest distance must be a number")
    matches = index.search(query, int(k), label=None if label in (None, ANY) else label)
    return [match for match in matches if match.distance <= threshold]


def _show(
    index: ImageIndex, queries: Sequence[Path], k: int, label: str, threshold: float, explained: bool
) -> tuple[str, Any, list[str]]:
    """Text, gallery, and the path of each image in it; several queries are rows that begin with the query."""
    if not queries:
        return "Choose a query image.", gr.Gallery([]), []
    shown: Thumbnails = []
    paths: list[str] = []
    said: list[str] = []
    for query in queries[:MAX_QUERIES]:
        try:
            matches = _search(index, query, k, label, threshold)
            row = [(_thumbnail(query), f"Query\n{query.name}")] if len(queries) > 1 else []
            picture = explainer(query, index.encoder, THUMBNAIL) if explained else _thumbnail
            row += [_shown(match, picture, index) for match in matches]
        except UserError as error:
            said.append(_sentence(error, index))
            continue
        shown += row
        paths += [str(query)] * (len(queries) > 1) + [str(match.path) for match in matches]
        if len(queries) > 1:  # the next row begins at the left
            missing = int(k) - len(matches)
            shown += [(_blank(), "")] * missing
            paths += [str(query)] * missing
        else:
            said.append(f"{len(matches)} matches for {query.name}." if matches else f"No match for {query.name}.")
    if len(queries) > 1:
        limit = f" The first {MAX_QUERIES} are searched." if len(queries) > MAX_QUERIES else ""
        said.insert(0, f"{min(len(queries), MAX_QUERIES) - len(said)} queries, one a row.{limit}")
    columns = int(k) + 1 if len(queries) > 1 else min(4, max(len(shown), 2))
    return "\n".join(said), gr.Gallery(shown, columns=columns), paths


def _shown(match: Match, picture: Callable[[Path], Image.Image], index: ImageIndex) -> tuple[Image.Image, str]:
    """A match as it is shown, and its caption; it may be gone by now, or lie on another machine."""
    label = f" · {_sendable(match.label)}" if match.label is not None else ""
    caption = f"{match.distance:.3f}{label}\n{_name(index, match)}"
    try:
        return picture(match.path), caption
    except ImageError:
        return _blank(), f"{caption}\n(can't be shown)"


def _thumbnail(path: Path) -> Image.Image:
    try:
        return _read_thumbnail(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise ImageError(f"{path}: {reason(error)}") from error


@lru_cache(maxsize=256)
def _read_thumbnail(path: Path, mtime_ns: int) -> Image.Image:
    image = read_image(path, channels=3)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _blank() -> Image.Image:
    return Image.new("RGB", (4, 4), "white")


def _name(index: ImageIndex, match: Match) -> str:
    """The path of a match that a client may know: relative to the folder."""
    return _sendable(str(match.path.relative_to(index.folder)))


def _sendable(name: str) -> str:
    """The name of a file or folder, which need not be UTF-8, as JSON can hold it."""
    return name.encode(errors="replace").decode()


def _labels(index: ImageIndex) -> list[str]:
    with suppress(UserError):  # which a search says
        return [label for label in index.store.labels() if label == _sendable(label)]
    return []


def _path(image: Upload) -> Path:
    """Where Gradio has stored an upload; a client could name any other file.

    Raises:
        UserError: There is none.
    """
    path = None if image is None else image.get("path")
    if not path:
        raise UserError("an image is required")
    stored = Path(path).resolve()
    if not stored.is_relative_to(Path(get_upload_folder()).resolve()):
        raise UserError("not an uploaded image")
    return stored


def _paths(*images: Upload) -> list[Path]:
    return [_path(image) for image in images if image is not None]


def _sentence(error: UserError, index: ImageIndex | None = None) -> str:
    """An error without the folders of this machine: the one that uploads are stored in, and others."""
    uploads = re.escape(str(Path(get_upload_folder()).resolve()))
    text = re.sub(rf"{uploads}/[^/]+/", "", str(error))  # whose names may have blanks
    if index is not None:
        for folder in (index.folder, Path(str(index.location)).parent):
            text = text.replace(f"{folder}{os.sep}", "")
    text = _sendable(text)
    return re.sub(r"\S*/([^/\s]+: )", r"\1", text)[:MAX_CHARACTERS]


def _recognise_tab(recogniser: Recogniser) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            paper = Image.new("RGB", (PAPER, PAPER), "white")
            canvas = gr.Sketchpad(
                paper,  # with a background, the brush is ready at once
                canvas_size=(PAPER, PAPER),
                fixed_canvas=True,
                height=420,
                layers=False,
                transforms=(),
                sources=(),  # or else it waits for an upload
                brush=gr.Brush(default_size=PAPER // 28, colors=["#000000"], color_mode="fixed"),
                label="Draw a digit",
                elem_id="canvas",
            )
            upload = gr.Image(
                sources=["upload", "clipboard"], label="Or choose a picture of one", height=180, elem_id="upload"
            )
        with gr.Column(scale=1, min_width=280):
            probabilities = gr.Label(num_top_classes=10, label="Class probabilities", elem_id="probabilities")
            seen = gr.Image(
                label="What the network saw", interactive=False, height=180, buttons=[], format="png", elem_id="seen"
            )
        with gr.Column(scale=1, min_width=280):
            similar = gr.Gallery(
                label="Most similar training images",
                columns=2,
                format="png",
                elem_id="similar",
                **GALLERY,
            )
            note = gr.Textbox(label="Note", interactive=False, elem_id="note", visible=False)

    def look(image: Upload) -> tuple[Any, ...]:
        try:
            result = None if image is None else recogniser.recognise(recogniser.read(_path(image)))
        except UserError as error:
            return None, None, [], gr.Textbox(_sentence(error), visible=True)
        refused = "" if result is None or not result.refusal else f"Not a digit: {result.refusal}."
        said = " ".join(filter(None, (refused, recogniser.note)))
        told = gr.Textbox(said, visible=bool(said))
        if result is None:
            return None, None, [], told
        images = [(_enlarged(one.pixels), f"{one.label} · {one.distance:.3f}") for one in result.similar]
        return result.probabilities, _enlarged(result.seen), images, told

    def look_at_drawing(drawing: dict[str, Upload] | None, picture: Upload) -> tuple[Any, ...]:
        drawn = look(drawing and drawing["composite"])
        # Blank paper leaves the picture's answer: the canvas reports itself once it is set up, maybe after the choice.
        return look(picture) if drawn[0] is None and picture is not None else drawn

    outputs = [probabilities, seen, similar, note]
    listen = {**LISTEN, "concurrency_id": "recognise"}
    both = [canvas, upload]
    canvas.input(look_at_drawing, both, outputs, trigger_mode="always_last", show_progress="hidden", **listen)
    canvas.clear(lambda: (paper, None, None, []), None, [canvas, *outputs[:3]], **listen)
    upload.change(look, upload, outputs, **listen)

    def answer(image: Upload) -> dict[str, Any]:
        try:
            result = recogniser.recognise(recogniser.read(_path(image)))
        except UserError as error:
            raise gr.Error(_sentence(error), print_exception=False) from error
        if result is None:
            raise gr.Error("there is nothing on the image", print_exception=False)
        return {
            "label": result.best,
            "probabilities": result.probabilities,
            "is_digit": not result.refusal,
            "score": result.score,
            "reason": result.refusal,
        }

    _publish("recognise", "The class of an image, and the probability of each class.", answer, [upload])


def _read_tab(reader: LineReader) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            upload = gr.Image(
                sources=["upload", "clipboard"], label="A picture with numbers", height=280, elem_id="sheet"
            )
            read = gr.Textbox(
                "Choose a picture.", label="Numbers, row by row", interactive=False, elem_id="read", max_lines=20
            )
        with gr.Column(scale=2, min_width=280):
            shown = gr.Image(label="Where they stand", interactive=False, buttons=[], format="png", elem_id="marked")

    def numbers_on(image: Upload) -> tuple[Image.Image, list[Number]]:
        picture = read_image(_path(image), channels=3, side=SIDE)
        return picture, read_picture(reader, picture)

    def look(image: Upload) -> tuple[str, Image.Image | None]:
        if image is None:
            return "Choose a picture.", None
        try:
            picture, numbers = numbers_on(image)
        except UserError as error:
            return _sentence(error), None
        rows: dict[int, list[str]] = {}
        for number in numbers:
            rows.setdefault(number.row, []).append(f"{number.text}{'?' if number.doubtful else ''}")
        text = "\n".join("   ".join(row) for row in rows.values()) or "No number was found."
        return text, mark_numbers(picture, numbers)

    def answer(image: Upload) -> list[dict[str, Any]]:
        try:
            _, numbers = numbers_on(image)
        except UserError as error:
            raise gr.Error(_sentence(error), print_exception=False) from error
        return [number.to_dict() for number in numbers]

    upload.change(look, upload, [read, shown], concurrency_id="read", **LISTEN)
    _publish("read", "The numbers on an image, in the order in which they are read.", answer, [upload])


def _enlarged(pixels: npt.NDArray[np.uint8]) -> Image.Image:
    """(C, S, S), uint8 -> a picture whose pixels can be seen."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    factor = -(-DIGIT // image.width)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def find_samples(folder: Path, limit: int = SAMPLES) -> list[Path]:
    """Query images to choose from: the first of a folder that can be read; none if there is no such folder."""
    paths: list[Path] = []
    with suppress(UserError):
        paths = find_images(folder)
    found: list[Path] = []
    for path in paths:
        with suppress(UserError):
            _thumbnail(path)
            found.append(path)
        if len(found) == limit:
            break
    return found
