"""Duplicates are reviewed on the page: shown side by side, chosen from, moved to the trash and back."""

import csv
import shutil
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from filelock import FileLock
from gradio_client import Client
from PIL import Image

from retrieval import cli
from retrieval.app.page import build_page
from retrieval.app.server import serve
from retrieval.encoders.resnet import ResNetEncoder
from retrieval.index import ImageIndex
from tests.browser.conftest import free_port, upload
from tests.browser.test_page import captions, wait_for_status
from tests.conftest import draw_photos

pytestmark = pytest.mark.browser


@pytest.fixture
def collection(tmp_path):
    """Twelve photographs, two copies of one and a version of another."""
    photos = draw_photos(tmp_path / "photos")
    for name in ("copy.jpg", "again.jpg"):
        shutil.copy(photos / "sky" / "0.jpg", photos / "grass" / name)
    Image.open(photos / "sand" / "1.jpg").save(photos / "sand" / "q90.jpg", quality=90)
    return tmp_path


@pytest.fixture
def index(collection, resnet_weights):
    with ImageIndex.open(collection / "photos", ResNetEncoder("resnet18", resnet_weights, "layer2")) as index:
        index.update()
        yield index


@pytest.fixture
def address(index):
    """The page with the tab, being served."""
    page = build_page(index, None, review=True)
    yield serve(page, "127.0.0.1", free_port(), None).rstrip("/")
    page.close()


def wait_for_result(page, text):
    page.wait_for_function(
        "text => document.querySelector('#review-status textarea, #review-status input')?.value.includes(text)",
        arg=text,
    )


def result(page):
    return page.locator("#review-status textarea, #review-status input").input_value()


def find(page, distance="0.01", said="to be moved"):
    page.get_by_role("tab", name="Review").click()
    page.locator("#review-threshold textarea, #review-threshold input").fill(distance)
    page.get_by_role("button", name="Find duplicates").click()
    wait_for_result(page, said)
    if said == "to be moved":
        page.locator("#groups img").last.wait_for()


def shown(page):
    """The lines below each image."""
    return [text.strip().splitlines() for text in page.locator("#groups .caption-label").all_inner_texts()]


def press(page, name, said):
    page.get_by_role("button", name=name).click()
    wait_for_result(page, said)


def images(folder):
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.jpg")}


def indexed(index):
    return {record.path for record in index.store.vectors()[0]}


def rows_of(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def written(page):
    """The plan that is downloaded."""
    with page.expect_download() as download:
        page.get_by_role("button", name="Write plan").click()
    assert download.value.suggested_filename == "plan.csv"
    return rows_of(download.value.path())


def test_groups_are_those_of_the_command_and_so_is_the_plan(page, collection, index, monkeypatch):
    monkeypatch.chdir(collection)
    assert cli.main(["audit", str(index.folder), "--threshold", "0.01", "--plan", "plan.csv"]) == 0
    plan = rows_of("plan.csv")
    find(page)
    assert result(page).startswith("2 groups with 5 images, 3 (")
    labels = page.locator("#groups label").all_inner_texts()
    assert [label.strip() for label in labels] == ["Group 1: 3 images, exact copies", "Group 2: 2 images, near copies"]
    assert [lines[1] for lines in shown(page)] == [row["path"] for row in plan]
    assert [lines[0].split(" ")[0] for lines in shown(page)] == [row["action"] for row in plan]
    first, copy, _, best, version = shown(page)
    assert (first[0], copy[0], best[0]) == ("keep", "move · exact copy", "keep")
    assert version[0] == f"move · near copy {float(plan[4]['distance']):.4f}"
    assert version[2] == f"120 × 90 · {int(plan[4]['bytes']) / 1000:.1f} kB"
    assert written(page) == plan


def test_what_is_kept_is_changed_by_a_click_and_by_another_rule(page, index):
    find(page)
    page.locator("#groups .thumbnail-lg").nth(0).click()
    page.get_by_text("A group keeps one of its images").first.wait_for()
    page.locator("#groups .thumbnail-lg").nth(1).click()
    page.get_by_role("button", name="Move 2 to trash").wait_for()
    page.locator("#groups .thumbnail-lg").nth(0).click()
    page.get_by_role("button", name="Move 3 to trash").wait_for()
    assert [lines[0] for lines in shown(page)][:3] == ["move", "keep · exact copy", "move · exact copy"]
    assert [row["action"] for row in written(page)] == ["move", "keep", "move", "keep", "move"]
    page.locator("#review-keep input").fill("sky")
    page.locator("#review-keep input").press("Enter")
    find(page)
    page.wait_for_function("() => document.querySelector('#groups .caption-label').innerText.includes('sky/0.jpg')")
    assert shown(page)[0][:2] == ["keep", "sky/0.jpg"]


def test_the_others_are_moved_and_moved_back_and_the_index_follows(page, index):
    before = images(index.folder)
    upload(page, index.folder / "sky" / "3.jpg")
    page.locator("#k input[type=number]").fill("20")
    wait_for_status(page, "14 matches")
    find(page)
    kept = {lines[1] for lines in shown(page) if lines[0] == "keep"}
    moved = {lines[1] for lines in shown(page)} - kept
    press(page, "Move 3 to trash", "3 images moved to .digitdoodle-trash/1.")
    trash = index.folder / ".digitdoodle-trash" / "1"
    assert images(trash) == moved
    assert indexed(index) == before - moved
    assert shown(page) == []
    page.get_by_role("tab", name="Search").click()
    wait_for_status(page, "11 matches")
    assert {caption.splitlines()[-1] for caption in captions(page)} == before - moved - {"sky/3.jpg"}
    page.get_by_role("tab", name="Review").click()
    press(page, "Undo last move", "3 images moved back from .digitdoodle-trash/1.")
    assert images(index.folder) == before
    assert indexed(index) == before
    press(page, "Undo last move", "There is nothing to move back.")


def test_exact_copies_alone_are_found_and_none_is_said(page, index):
    find(page, "0")
    assert result(page).startswith("1 groups with 3 images")
    press(page, "Move 2 to trash", "2 images moved")
    find(page, "0", "No duplicates among 13 images.")


def test_an_error_is_a_line_and_nothing_is_moved(page, index):
    find(page)
    before = images(index.folder)
    (index.folder / "sand" / "q90.jpg").write_bytes(b"changed")
    press(page, "Move 3 to trash", "q90.jpg: has changed since the plan was written")
    assert "\n" not in result(page)
    assert str(index.folder) not in page.content()
    with FileLock(f"{index.location}.lock"):
        press(page, "Move 3 to trash", "another process is updating the index or cleaning up")
    (index.folder / "sand" / "q90.jpg").unlink()
    press(page, "Move 3 to trash", "sand/q90.jpg: no such file in photos")
    assert str(index.folder) not in page.content()
    assert images(index.folder) == before - {"sand/q90.jpg"}
    (index.folder / ".digitdoodle-trash").touch()
    find(page, "0")
    press(page, "Move 2 to trash", ".digitdoodle-trash/1: not a directory")
    assert str(index.folder) not in page.content()
    find(page, "far", "the distance must be a number such as 0.05, or empty; got far")
    page.locator("#review-keep input").fill("../photos")
    page.locator("#review-keep input").press("Enter")
    find(page, "0", "../photos: neither largest, sharpest, oldest nor a folder in photos, relative to it")


def test_many_groups_are_pages_and_a_page_is_moved_alone(page, index):
    for kind in ("sky", "grass", "sand"):
        for seed in range(4):
            shutil.copy(index.folder / kind / f"{seed}.jpg", index.folder / kind / f"{seed} again.jpg")
    index.update()
    find(page, "0")
    assert result(page).startswith("12 groups")
    assert len(shown(page)) == 22
    page.get_by_role("button", name="Next groups").click()
    page.get_by_role("button", name="Move 2 to trash").wait_for()
    assert len(shown(page)) == 4
    assert page.get_by_role("button", name="Next groups").is_disabled()
    page.get_by_role("button", name="Previous groups").click()
    press(page, "Move 12 to trash", "12 images moved to .digitdoodle-trash/1.")
    assert len(shown(page)) == 4
    press(page, "Move 2 to trash", "2 images moved to .digitdoodle-trash/2.")


def test_a_phone_shows_all_of_it(browser, address):
    for scheme in ("light", "dark"):
        phone = browser.new_context(viewport={"width": 390, "height": 844}, is_mobile=True, color_scheme=scheme)
        page = phone.new_page()
        page.goto(address)
        find(page)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        boxes = [page.locator("#groups img").nth(number).bounding_box() for number in range(5)]
        assert all(100 < box["width"] < 200 for box in boxes)
        violations = Axe().run(page).response["violations"]
        assert [found["id"] for found in violations if found["impact"] in ("serious", "critical")] == []
        phone.close()


def test_no_program_can_move_images(address):
    client = Client(address, verbose=False)
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/search"}
    client.close()
