"""Draws the pictures of the README and the guides, from the handwritten digits that scikit-learn carries.

``uv run --group browser python docs/pictures.py`` (needs Chromium).
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from datamodules import OptDigitsDataModule
from datamodules.strokes import DIGITS, OTHERS, curves, write
from lightning_modules.cli import main as train
from retrieval.cli import main as search

DOCS = Path(__file__).parent.resolve()
CHECKPOINT = "runs/custom_cnn/version_0/checkpoints/best.ckpt"
TWO = [(0.3, 0.3), (0.36, 0.2), (0.5, 0.16), (0.64, 0.22), (0.66, 0.36), (0.5, 0.58), (0.3, 0.82), (0.72, 0.82)]


def write_digits(held_out: int = 12) -> None:
    """Write the digits as files: a class folder each, and the first ones as query images."""
    data = OptDigitsDataModule().load()
    for row, (pixels, label) in enumerate(zip(data.pixels, data.labels, strict=True)):
        path = Path("query_images") if row < held_out else Path("digits") / str(label)
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).resize((96, 96), Image.Resampling.BICUBIC).save(path / f"{row:04d}.png")


def draw_overview() -> None:
    """Put accuracy per epoch and two queries side by side."""
    search(["query", "0002.png", "0008.png", "--database", "digits", "-k", "3", "--figure", "matches.png"])
    pictures = [Image.open(name).convert("RGB") for name in ("runs/custom_cnn/version_0/accuracy.png", "matches.png")]
    height = 560
    pictures = [picture.resize((picture.width * height // picture.height, height)) for picture in pictures]
    overview = Image.new("RGB", (sum(picture.width for picture in pictures) + 40, height), "white")
    overview.paste(pictures[0], (0, 0))
    overview.paste(pictures[1], (pictures[0].width + 40, 0))
    save(overview, "overview.png")


def draw_seen() -> None:
    """What `predict --figure` draws, of digits and others that are drawn on paper by program."""
    generator = np.random.default_rng(4)
    papers = {"ruled.png": (235, 235, 230), "pencil.png": (225, 225, 225), "yellow.png": (250, 240, 160)}
    pens = {"ruled.png": (40, 60, 160), "pencil.png": (150, 150, 150), "yellow.png": (150, 40, 40)}
    shown = {"ruled.png": DIGITS[7][3], "pencil.png": DIGITS[1][2], "yellow.png": DIGITS[4][0]}
    papers |= {"chalk.png": (35, 45, 40), "letter.png": (240, 240, 240), "blank.png": (230, 225, 215)}
    pens |= {"chalk.png": (220, 220, 210), "letter.png": (30, 30, 30)}
    shown |= {"chalk.png": DIGITS[9][1], "letter.png": OTHERS[0]}
    side = 480
    shadow = 1 - 0.35 * np.linspace(0, 1, side)[:, None, None]
    for name, paper in papers.items():
        picture = np.broadcast_to(np.array(paper, dtype=float), (side, side, 3)).copy()
        if name == "ruled.png":
            picture[40::60] = (170, 190, 225)
        if name in shown:
            ink = np.zeros((side, side))
            drawn = write(curves(shown[name]), generator, 240, 0.8, 0.04) / 255
            top, left = generator.integers(0, side - 240, 2)
            ink[top : top + 240, left : left + 240] = drawn
            picture += ink[..., None] * (np.array(pens[name]) - picture)
        picture = picture * shadow + generator.normal(0, 3, picture.shape)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(name)
    train(["predict", "--images", *sorted(papers), "--figure", "seen.png"])
    save(Image.open("seen.png").convert("RGB"), "seen.png")


def photograph_page(page: Page, address: str) -> None:
    """Search with a digit, draw another one."""
    page.goto(address)
    page.set_input_files("#query input[type=file]", "query_images/0008.png")
    page.locator(".matches img").nth(3).wait_for()
    page.wait_for_timeout(2000)
    page.screenshot(path="search.png")
    page.get_by_role("tab", name="Recognise").click()
    canvas = page.locator("#canvas canvas").first
    canvas.wait_for()
    page.wait_for_timeout(2000)
    box = canvas.bounding_box()
    assert box is not None
    side = 0.8 * min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    page.mouse.move(left + TWO[0][0] * side, top + TWO[0][1] * side)
    page.mouse.down()
    for across, down in TWO:
        page.mouse.move(left + across * side, top + down * side, steps=5)
    page.mouse.up()
    page.locator("#similar img").nth(3).wait_for()
    page.wait_for_timeout(4000)
    page.screenshot(path="recognise.png")
    for name in ("search.png", "recognise.png"):
        save(Image.open(name).convert("RGB"), name)


def save(picture: Image.Image, name: str) -> None:
    """Save a picture with a palette, which is smaller: it is kept in the repository."""
    picture.quantize(256).save(DOCS / name, optimize=True)


def main() -> None:
    """Train, index, search, and look at the page."""
    config = DOCS.parent / "configs" / "custom_cnn.yaml"
    os.chdir(tempfile.mkdtemp())
    write_digits()
    train(["fit", "--config", str(config)])
    search(["index", "digits", "--encoder", CHECKPOINT])
    draw_overview()
    draw_seen()
    command = [sys.executable, "-m", "retrieval", "serve", "digits", "--checkpoint", CHECKPOINT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        address = server.stdout.readline().split(" on ")[1].split()[0]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        photograph_page(browser.new_page(viewport={"width": 1200, "height": 760}), address)
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
