"""The tab that cleans up duplicates: groups side by side, what each keeps, the way to the trash and back."""

import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from datamodules.errors import UserError
from datamodules.images import ImageError
from retrieval.app.client import LISTEN, sendable, sentence, uploads
from retrieval.app.pictures import GALLERY, blank, thumbnail
from retrieval.app.review import GROUPS, Group, Review, find_duplicates, moves, put_away, put_back, size_of
from retrieval.cleanup import CRITERIA, MOVE, PlanRow, write_plan
from retrieval.index import ImageIndex

IMAGES = 24  # of a group that are shown
LARGE = 4  # images above which a group has a row to itself
PALE = 90  # opacity of what is to be moved, of 255
KINDS = {"duplicate": "exact", "near-duplicate": "near"}
PROGRESS = gr.Progress()

# What has been done is said above the groups, and their buttons stand below them.
SCROLL = "() => document.querySelector('#review-status').scrollIntoView({ behavior: 'smooth', block: 'nearest' })"
DOWNLOAD = "() => setTimeout(() => document.querySelector('#plan').click(), 200)"  # once the page has the link


def review_tab(index: ImageIndex) -> None:
    """How to choose above, the groups, and what can be done with them below."""
    with gr.Row(elem_id="review-settings"):
        keep = gr.Dropdown(
            list(CRITERIA),
            label="Keep of each group",
            info="or a folder: type its name",
            allow_custom_value=True,
            elem_id="review-keep",
        )
        threshold = gr.Textbox(
            label="Near copies within",
            info="0: exact copies alone",
            placeholder="from the data",
            max_lines=1,
            elem_id="review-threshold",
        )
        find = gr.Button("Find duplicates", variant="primary")
    status = gr.Textbox(
        "Find duplicates to review them.",
        label="Result",
        interactive=False,
        lines=1,
        max_lines=6,
        elem_id="review-status",
    )
    with gr.Row(elem_id="groups"):
        galleries = [gr.Gallery(format="webp", visible=False, **GALLERY) for _ in range(GROUPS)]
    with gr.Row(elem_id="review-actions"):
        before = gr.Button("Previous groups", size="md", visible=False)
        behind = gr.Button("Next groups", size="md", visible=False)
        move = gr.Button(variant="primary", size="md", visible=False)
        move_all = gr.Button(size="md", visible=False)
        write = gr.Button("Write plan", size="md", visible=False)
        take_back = gr.Button("Undo last move", size="md")
        plan = gr.DownloadButton(visible="hidden", elem_id="plan")
    review = gr.State(Review())
    buttons = [before, behind, move, move_all, write]
    shown = [review, *galleries, *buttons]
    turning = {**LISTEN, "show_progress": "hidden"}
    alone = {**LISTEN, "concurrency_limit": 1, "concurrency_id": "clean-up", "show_progress_on": status}

    def show(review: Review) -> list[Any]:
        groups = [_gallery(index.folder, group) for group in review.shown]
        return [review, *groups, *[gr.Gallery([], visible=False)] * (GROUPS - len(groups)), *_buttons(review)]

    def look(keep: str, threshold: str, progress: gr.Progress = PROGRESS) -> list[Any]:
        def advance(done: tuple[int, int]) -> None:
            progress(done, desc="Comparing", unit="images")

        try:
            found, said = find_duplicates(index, str(keep), str(threshold or ""), advance)
        except UserError as error:
            found, said = Review(), sentence(error, index)
        return [said, *show(found)]

    def move_of(review: Review, groups: Sequence[Group]) -> list[Any]:
        try:
            said = put_away(index, groups)
            review = review.without(groups)
        except UserError as error:
            said = sentence(error, index)
        return [said, *show(review)]

    def undo() -> str:
        try:
            return put_back(index)
        except UserError as error:
            return sentence(error, index)

    def toggle_in(place: int) -> Any:
        def toggle(review: Review, chosen: gr.SelectData) -> list[Any]:
            try:
                review = review.toggle(place, chosen.index)
            except UserError as error:
                raise gr.Error(sentence(error), print_exception=False) from error
            return [review, _gallery(index.folder, review.shown[place]), *_buttons(review)]

        return toggle

    for place, gallery in enumerate(galleries):
        gallery.select(toggle_in(place), review, [review, gallery, *buttons], **turning)
    find.click(look, [keep, threshold], [status, *shown], **alone)
    for event in (
        before.click(lambda review: show(review.turn(-1)), review, shown, **turning),
        behind.click(lambda review: show(review.turn(1)), review, shown, **turning),
        move.click(lambda review: move_of(review, review.shown), review, [status, *shown], **alone),
        move_all.click(lambda review: move_of(review, review.groups), review, [status, *shown], **alone),
        take_back.click(undo, None, status, **alone),
    ):
        event.then(None, None, None, js=SCROLL)
    write.click(_written, review, plan, **turning).then(None, None, None, js=DOWNLOAD)


def _written(review: Review) -> str:
    """A file with the plan as it is now."""
    path = Path(tempfile.mkdtemp(dir=uploads()), "plan.csv")
    write_plan(path, chain.from_iterable(review.groups))
    return str(path)


def _buttons(review: Review) -> list[Any]:
    """The buttons before, behind, move, move_all and write."""
    several = len(review.groups) > GROUPS
    here, everywhere = len(moves(review.shown)), len(moves(review.groups))
    last = review.first + GROUPS >= len(review.groups)
    return [
        gr.Button(visible=several, interactive=review.first > 0),
        gr.Button(visible=several, interactive=not last),
        gr.Button(f"Move {here} to trash", visible=bool(review.groups), interactive=here > 0),
        gr.Button(f"Move all {everywhere}", visible=several, interactive=everywhere > 0),
        gr.Button(visible=bool(review.groups)),
    ]


def _gallery(folder: Path, group: Group) -> Any:
    """A group as it is shown."""
    images = [_shown(folder, row) for row in group[:IMAGES]]
    kinds = " and ".join(name for kind, name in KINDS.items() if any(row.kind == kind for row in group))
    limit = f", the first {IMAGES} shown" if len(group) > IMAGES else ""
    label = f"Group {group[0].group}: {len(group)} images, {kinds} copies{limit}"
    size = ["large"] if len(group) > LARGE else []
    return gr.Gallery(images, label=label, visible=True, selected_index=None, elem_classes=size)


def _shown(folder: Path, row: PlanRow) -> tuple[Image.Image, str]:
    """An image, pale if it is to be moved, and its caption; it may be gone by now, or lie on another machine."""
    kind = f" · {KINDS[row.kind]} copy" if row.kind in KINDS else ""
    distance = f" {row.distance:.4f}" if row.kind == "near-duplicate" else ""
    caption = f"{row.action}{kind}{distance}\n{sendable(row.path)}\n{row.width} × {row.height} · {size_of([row])}"
    try:
        picture = thumbnail(folder / row.path).convert("RGBA")
    except ImageError:
        return blank(), f"{caption}\n(can't be shown)"
    if row.action == MOVE:
        picture.putalpha(PALE)
    return picture, caption
