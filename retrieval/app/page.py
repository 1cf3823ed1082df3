"""The page: a tab for each thing that it does, and how they look."""

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from lightning_modules.networks.line_reader import LineReader
from retrieval.app.corrections import Corrections
from retrieval.app.read_tab import read_tab
from retrieval.app.recognise_tab import recognise_tab
from retrieval.app.recognition import Recogniser
from retrieval.app.review_tab import review_tab
from retrieval.app.search_tab import search_tab
from retrieval.index import ImageIndex

CSS = Path(__file__).with_suffix(".css")
THEME = gr.themes.Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace"))


def build_page(
    index: ImageIndex,
    recogniser: Recogniser | None,
    samples: Sequence[Path] = (),
    reader: LineReader | None = None,
    corrections: Corrections | None = None,
    review: bool = False,
) -> gr.Blocks:
    """The page over an index, and over a classifier and a reader if there are some.

    Args:
        index: What is searched; brought up to date by other processes, if at all.
        recogniser: What recognises drawings; None leaves that tab out.
        samples: Query images to choose from.
        reader: What reads numbers; None leaves that tab out.
        corrections: Where pictures are kept that were recognised wrong; None keeps none.
        review: Whether duplicates are cleaned up here.
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
            with gr.Tab("Search") as search:
                search_tab(page, search, index, samples)
            if recogniser is not None:
                with gr.Tab("Recognise"):
                    recognise_tab(recogniser, corrections)
            if reader is not None:
                with gr.Tab("Read"):
                    read_tab(reader)
            if review:
                with gr.Tab("Review"):
                    review_tab(index)
    return page
