"""Draws the pictures of the README and the guides, of images that anyone may publish.

The handwritten digits are those that scikit-learn carries, the photographs are scikit-image's in the public domain or
CC0. ``uv run --group browser --with scikit-image python docs/pictures.py`` (needs Chromium).
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from datamodules import OptDigitsDataModule
from datamodules.strokes import DIGITS, OTHERS, curves, write
from lightning_modules.cli import main as train
from retrieval.cli import main as search

DOCS = Path(__file__).parent.resolve()
CHECKPOINT = "runs/custom_cnn/version_0/checkpoints/best.ckpt"
PHOTOS = ["chelsea.png", "astronaut.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg"]
TWO = [(0.3, 0.3), (0.36, 0.2), (0.5, 0.16), (0.64, 0.22), (0.66, 0.36), (0.5, 0.58), (0.3, 0.82), (0.72, 0.82)]


def write_digits(held_out: int = 12) -> None:
    """Write the digits as files: a class folder each, and the first ones beside them."""
    data = OptDigitsDataModule().load()
    for row, (pixels, label) in enumerate(zip(data.pixels, data.labels, strict=True)):
        path = Path("held_out") if row < held_out else Path("digits") / str(label)
        path.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).resize((96, 96), Image.Resampling.BICUBIC).save(path / f"{row:04d}.png")


def write_photos(side: int = 200, count: int = 16) -> None:
    """Write parts of photographs as files, a folder for each photograph, and the photographs as query images."""
    generator = np.random.default_rng(3)
    queries = Path("query_images")
    queries.mkdir()
    for photo in PHOTOS:
        image = Image.open(Path(skimage.data.__file__).parent / photo).convert("RGB")
        image.thumbnail((600, 600))
        folder = Path("photos", Path(photo).stem)
        folder.mkdir(parents=True)
        for number in range(count):
            left, top = (int(generator.integers(length - side)) for length in image.size)
            image.crop((left, top, left + side, top + side)).save(folder / f"{number}.jpg", quality=95)
        image.save(queries / f"{folder.name}.jpg", quality=95)


def write_album() -> None:
    """Write three photographs with copies: of the same bytes, smaller, and compressed more."""
    for name in ("chelsea", "coffee", "rocket"):
        folder = Path("album", "pictures")
        (folder / "from a friend").mkdir(parents=True, exist_ok=True)
        image = Image.open(f"query_images/{name}.jpg")
        image.save(folder / f"{name}.jpg", quality=95)
        shutil.copy(folder / f"{name}.jpg", folder / f"{name} (1).jpg")
        image.resize((300, 300 * image.height // image.width)).save(
            folder / "from a friend" / f"{name}.webp", quality=60
        )


def draw_overview() -> None:
    """Put accuracy per epoch and two queries side by side."""
    search(
        [
            "query",
            "held_out/0002.png",
            "held_out/0008.png",
            "--database",
            "digits",
            "-k",
            "3",
            "--figure",
            "matches.png",
        ]
    )
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


def photograph_search(page: Page, address: str) -> None:
    """Search with a part of a photograph, like another one."""
    page.goto(address)
    page.set_input_files("#query input[type=file]", "query_images/chelsea.jpg")
    page.locator("#matches img").nth(3).wait_for()
    page.get_by_role("button", name="+ Like this").click()
    page.locator("#kept img").wait_for()
    page.set_input_files("#query input[type=file]", "query_images/astronaut.jpg")
    status = "document.querySelector('#status :is(input, textarea)').value"
    page.wait_for_function(f"{status}.endsWith('+ astronaut.jpg.')")
    part = page.get_by_label("Part (left, top, right, bottom)")
    part.fill("120,10,340,230")
    part.press("Enter")
    page.wait_for_function(f"{status}.endsWith('].')")
    page.wait_for_timeout(2000)
    page.screenshot(path="search.png")
    save(Image.open("search.png").convert("RGB"), "search.png")


def photograph_sketch(page: Page, address: str) -> None:
    """Draw a digit."""
    page.goto(address)
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
    save(Image.open("recognise.png").convert("RGB"), "recognise.png")


def photograph_review(page: Page, address: str) -> None:
    """Review duplicates."""
    page.goto(address)
    page.get_by_role("tab", name="Review").click()
    page.get_by_role("button", name="Find duplicates").click()
    page.locator("#groups img").nth(8).wait_for()
    page.wait_for_timeout(2000)
    page.screenshot(path="review.png")
    save(Image.open("review.png").convert("RGB"), "review.png")


@contextlib.contextmanager
def served(*options: str) -> Iterator[tuple[Page, str]]:
    """A browser's page, and the address of a server with these options."""
    command = [sys.executable, "-m", "retrieval", "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        address = server.stdout.readline().split(" on ")[1].split()[0]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        yield browser.new_page(viewport={"width": 1200, "height": 860}), address
        browser.close()
        server.terminate()


def save(picture: Image.Image, name: str) -> None:
    """Save a picture with a palette, which is smaller: it is kept in the repository."""
    picture.quantize(256).save(DOCS / name, optimize=True)


def main() -> None:
    """Train, index, search, and look at the page."""
    config = DOCS.parent / "configs" / "custom_cnn.yaml"
    os.chdir(tempfile.mkdtemp())
    write_digits()
    write_photos()
    train(["fit", "--config", str(config)])
    search(["index", "digits", "--encoder", CHECKPOINT])
    search(["index", "photos", "--encoder", "resnet18", "--layer", "layer3"])
    draw_overview()
    draw_seen()
    with served("photos", "--checkpoint", CHECKPOINT) as (page, address):
        photograph_search(page, address)
        photograph_sketch(page, address)
    write_album()
    search(["index", "album", "--encoder", "resnet18", "--layer", "layer3"])
    with served("album", "--review") as (page, address):
        photograph_review(page, address)


if __name__ == "__main__":
    main()
