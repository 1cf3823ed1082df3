"""The tab that reads numbers on a picture."""

from typing import Any

import gradio as gr
from PIL import Image

from datamodules.errors import UserError
from lightning_modules.networks.line_reader import LineReader
from lightning_modules.number_reading import read_file
from retrieval.app.client import LISTEN, Upload, publish, sentence, stored
from retrieval.app.pictures import upload_image


def read_tab(reader: LineReader) -> None:
    """Numbers on a picture, row by row, and where they stand."""
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            upload = upload_image("A picture with numbers", 280, "sheet")
            read = gr.Textbox(
                "Choose a picture.", label="Numbers, row by row", interactive=False, elem_id="read", max_lines=20
            )
        with gr.Column(scale=2, min_width=280):
            shown = gr.Image(label="Where they stand", interactive=False, buttons=[], format="png", elem_id="marked")

    def look(image: Upload) -> tuple[str, Image.Image | None]:
        if image is None:
            return "Choose a picture.", None
        try:
            file, picture = read_file(reader, stored(image))
        except UserError as error:
            return sentence(error), None
        rows: dict[int, list[str]] = {}
        for number in file.numbers:
            rows.setdefault(number.row, []).append(f"{number.text}{'?' if number.doubtful else ''}")
        text = "\n".join("   ".join(row) for row in rows.values()) or "No number was found."
        return text, file.mark(picture)

    def answer(image: Upload) -> list[dict[str, Any]]:
        try:
            file, _ = read_file(reader, stored(image))
        except UserError as error:
            raise gr.Error(sentence(error), print_exception=False) from error
        return [number.to_dict() for number in file.numbers]

    upload.change(look, upload, [read, shown], concurrency_id="read", **LISTEN)
    publish("read", "The numbers on an image, in the order in which they are read.", answer)
