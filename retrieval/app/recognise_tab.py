"""The tab that recognises a drawing, or a picture."""

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from datamodules.errors import UserError
from datamodules.text import printable
from lightning_modules.answers import refusal
from retrieval.app.client import LISTEN, Upload, publish, sendable, sentence, stored
from retrieval.app.corrections import Corrections
from retrieval.app.pictures import GALLERY, enlarged, upload_image
from retrieval.app.recognition import Recogniser

PAPER = 280  # side of the drawing, in pixels
MANY = 20  # classes, for which there is a list to choose from, and no buttons

# Clearing puts the brush away, and takes it up again only with new paper, under which the first strokes would vanish.
TAKE_BRUSH = """() => {
    document.querySelector('#canvas button[aria-label="Brush"]').click()
    return [{}, null, []]
}"""


def recognise_tab(recogniser: Recogniser, corrections: Corrections | None = None) -> None:
    """A drawing or a picture, what the network says of it, and what it was trained on that is like it.

    Args:
        recogniser: What answers.
        corrections: Where pictures are kept once someone has said what they show in truth; None asks nobody.
    """
    recognised = gr.State()  # the file that the answer is of: a client can't name it
    drawn = gr.State(False)  # whether there was something on the paper
    with gr.Row(elem_id="recognise"):
        with gr.Column(scale=1, min_width=300):
            paper = Image.new("RGB", (PAPER, PAPER), "white")
            canvas = gr.Sketchpad(
                paper,  # with a background, the brush is ready at once
                canvas_size=(PAPER, PAPER),
                fixed_canvas=True,
                height=400,
                layers=False,
                transforms=(),
                sources=(),  # or else it waits for an upload
                brush=gr.Brush(default_size=PAPER // 28, colors=["#000000"], color_mode="fixed"),
                label="Draw a digit",
                elem_id="canvas",
            )
            upload = upload_image("Or choose a picture of one", 180, "upload")
        with gr.Column(scale=1, min_width=280):
            probabilities = gr.Label(num_top_classes=10, label="Class probabilities", elem_id="probabilities")
            choose = gr.Radio if len(recogniser.class_names) <= MANY else gr.Dropdown
            truth = choose(recogniser.class_names, label="Wrong? It is a …", visible=False, elem_id="truth")
            seen = gr.Image(
                label="What the network saw", interactive=False, height=180, buttons=[], format="png", elem_id="seen"
            )
        with gr.Column(scale=1, min_width=280):
            similar = gr.Gallery(
                label="Most similar training images",
                columns=2,
                format="png",
                visible=False,
                elem_id="similar",
                **GALLERY,
            )
            note = gr.Textbox(label="Note", interactive=False, elem_id="note", visible=False)

    def look(image: Upload) -> tuple[Any, ...]:
        unasked = (None, choose(value=None, visible=False))
        try:
            path = None if image is None else stored(image)
            result = None if path is None else recogniser.recognise(recogniser.read(path))
        except UserError as error:
            return None, None, [], gr.Textbox(sentence(error), visible=True), *unasked
        why = "" if path is None else result.refusal if result else refusal(digits=0, familiarity=0)
        said = " ".join(filter(None, (f"Not a digit: {why}." if why else "", recogniser.note)))
        told = gr.Textbox(said, visible=bool(said))
        if result is None:
            return None, None, [], told, *unasked
        asked = (path, choose(value=None, visible=corrections is not None))
        images = [(enlarged(one.pixels), f"{one.label} · {one.distance:.3f}") for one in result.similar]
        return result.probabilities, enlarged(result.seen), gr.Gallery(images, visible=bool(images)), told, *asked

    def look_at_drawing(drawing: dict[str, Upload] | None, picture: Upload, was_drawn: bool) -> Any:
        found = look(drawing and drawing["composite"])
        if found[0] is not None:
            return *found, True
        # The canvas reports itself once it is set up, maybe after a picture was chosen, or taken away again.
        return (*look(picture), False) if was_drawn else gr.skip()

    outputs = [probabilities, seen, similar, note, recognised, truth]
    listen = {**LISTEN, "concurrency_id": "recognise"}
    canvas.input(
        look_at_drawing,
        [canvas, upload, drawn],
        [*outputs, drawn],
        trigger_mode="always_last",
        show_progress="hidden",
        **listen,
    )
    canvas.clear(None, None, outputs[:3], js=TAKE_BRUSH)
    upload.change(look, upload, outputs, **listen)

    if corrections is not None:

        def keep(path: Path | None, label: str) -> Any:
            try:
                if path is None:
                    raise UserError("an image is required")
                kept = corrections.keep(recogniser.read(path), label)
                count = len(corrections)
            except UserError as error:
                return gr.Textbox(sentence(error), visible=True)
            place = kept.relative_to(corrections.folder.parent)
            said = f"Kept as {place}; {count} so far. {corrections.command} learns from them."
            return gr.Textbox(sendable(printable(said)), visible=True)

        truth.input(keep, [recognised, truth], note, **listen)

    def answer(image: Upload) -> dict[str, Any]:
        try:
            result = recogniser.recognise(recogniser.read(stored(image)))
        except UserError as error:
            raise gr.Error(sentence(error), print_exception=False) from error
        if result is None:
            raise gr.Error("there is nothing on the image", print_exception=False)
        return {
            "label": result.best,
            "probabilities": result.probabilities,
            "is_digit": not result.refusal,
            "score": result.score,
            "reason": result.refusal,
        }

    publish("recognise", "The class of an image, and the probability of each class.", answer)
