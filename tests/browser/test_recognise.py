"""Digits that are drawn on the page, or chosen as a picture, in a real browser."""

import pytest
from PIL import Image
from playwright.sync_api import Page

from retrieval.app.corrections import Corrections
from retrieval.app.page import build_page
from retrieval.app.server import serve
from tests.browser.conftest import free_port, train, upload
from tests.browser.strokes import STROKES
from tests.conftest import SHARED

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that has learnt MNIST a little, or the embedded digits where MNIST isn't here."""
    mnist = ["--data", "MNISTDataModule", "--data.root", str(SHARED / "data"), "--data.val_fraction", "0.02"]
    mnist += ["--trainer.limit_train_batches", "250"]
    return train(tmp_path_factory.mktemp("training"), *(mnist if SHARED.is_dir() else []))


def draw(page: Page, digit: int) -> None:
    canvas = page.locator("#canvas canvas").first
    box = canvas.bounding_box()
    side = 0.8 * min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    for stroke in STROKES[digit]:
        points = [(left + across * side, top + down * side) for across, down in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point)
        page.mouse.up()


def recognised(page: Page) -> str | None:
    """What the page says once it says the same for a while: it goes on recognising while one draws."""
    said = [None]
    for _ in range(240):  # a minute, for a machine that does other things as well
        page.wait_for_timeout(250)
        heading = page.locator("#probabilities [data-testid=label-output-value]")
        said.append(heading.inner_text().strip() if heading.count() else None)
        if len(said) > 6 and said[-1] is not None and len(set(said[-5:])) == 1:
            break
    return said[-1]


@pytest.mark.skipif(not SHARED.is_dir(), reason="MNIST is not here")
def test_drawn_digits_are_recognised(page):
    page.get_by_role("tab", name="Recognise").click()
    page.locator("#canvas canvas").first.wait_for()
    page.wait_for_timeout(1000)
    answers = []
    for digit in STROKES:
        draw(page, digit)
        answers.append(recognised(page))
        if digit == 2:
            page.locator("#seen img").first.wait_for()
            page.locator("#similar img").nth(3).wait_for()
            assert len(page.locator("#probabilities .confidence-set").all()) == 10
        page.get_by_label("Clear canvas").click()  # the next digit is drawn at once
    right = [answer == str(digit) for digit, answer in zip(STROKES, answers, strict=True)]
    assert sum(right) >= 9, answers


def test_strokes_that_are_drawn_at_once_after_clear_stay(page):
    page.get_by_role("tab", name="Recognise").click()
    page.locator("#canvas canvas").first.wait_for()
    page.wait_for_timeout(1000)
    draw(page, 2)
    page.locator("#seen img").wait_for()
    page.get_by_label("Clear canvas").click()
    page.locator("#seen img").wait_for(state="detached")
    draw(page, 7)
    page.wait_for_timeout(3000)  # in which no paper is laid over it
    page.locator("#seen img").wait_for()


def test_a_sketch_and_what_is_said_of_it_are_in_one_window(page):
    page.get_by_role("tab", name="Recognise").click()
    page.locator("#canvas canvas").first.wait_for()
    page.wait_for_timeout(1000)
    draw(page, 2)
    page.locator("#seen img").wait_for()
    seen = page.locator("#seen img").bounding_box()
    assert seen["y"] + seen["height"] < 900


def test_a_picture_of_a_digit_is_recognised_and_a_broken_one_gets_a_sentence(page, recogniser, tmp_path):
    digit, broken = tmp_path / "seven.png", tmp_path / "broken.png"
    pixels = recogniser.train_set[0].images[0].numpy()
    Image.fromarray(255 - pixels[0]).resize((90, 90)).save(digit)  # dark on light, as on paper
    broken.write_bytes(digit.read_bytes()[:60])
    page.get_by_role("tab", name="Recognise").click()
    upload(page, broken, into="upload")
    page.wait_for_function("() => document.querySelector('#note textarea, #note input')?.value.includes('broken.png')")
    page.locator("#upload").get_by_label("Remove Image").click()
    page.wait_for_function("() => !document.querySelector('#note textarea, #note input')?.value.includes('broken.png')")
    upload(page, digit, into="upload")
    page.locator("#similar img").first.wait_for()
    assert recognised(page) == recogniser.recognise(Image.open(digit)).best


def test_a_picture_with_nothing_on_it_gets_the_answer_of_predict(page, tmp_path):
    Image.new("RGB", (90, 90), "white").save(tmp_path / "blank.png")
    page.get_by_role("tab", name="Recognise").click()
    upload(page, tmp_path / "blank.png", into="upload")
    said(page, "Not a digit: nothing on it.")


def test_a_canvas_that_reports_itself_late_leaves_what_is_said_of_the_picture(page, tmp_path):
    broken, late = tmp_path / "broken.png", []
    broken.write_bytes(b"no picture")

    def hold(route):
        of_canvas = "background" in (route.request.post_data or "")
        late.append(route) if of_canvas else route.continue_()

    page.route("**/queue/join*", hold)
    page.get_by_role("tab", name="Recognise").click()
    upload(page, broken, into="upload")
    said(page, "broken.png")
    page.locator("#upload").get_by_label("Remove Image").click()
    unsaid = "() => !document.querySelector('#note textarea, #note input')?.value.includes('broken.png')"
    page.wait_for_function(unsaid)
    page.wait_for_timeout(1000)
    assert late
    for route in late:  # it says of which picture it was sent beside: the one that is gone
        route.continue_()
    page.wait_for_timeout(2000)
    assert page.evaluate(unsaid)


@pytest.fixture
def correcting(browser, index, recogniser, tmp_path):
    """A page on which pictures can be put right, and where they are kept."""
    kept = tmp_path / "corrections"
    app = build_page(index, recogniser, corrections=Corrections(kept, recogniser.class_names))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(serve(app, "127.0.0.1", free_port(), None))
    page.get_by_role("tab", name="Recognise").click()
    yield page, kept
    page.close()
    app.close()


def said(page: Page, text: str) -> None:
    page.wait_for_function(
        "text => document.querySelector('#note textarea, #note input')?.value.includes(text)", arg=text
    )


def test_a_click_keeps_a_picture_as_what_it_shows_in_truth(correcting, recogniser, tmp_path):
    page, kept = correcting
    digit = tmp_path / "seven.jpg"
    Image.fromarray(255 - recogniser.train_set[0].images[0, 0].numpy()).resize((90, 90)).save(digit)
    assert page.locator("#truth").is_hidden()
    upload(page, digit, into="upload")
    page.locator("#truth").get_by_text("7", exact=True).click()
    said(page, "1 so far. python -m lightning_modules fit --config configs/adapt.yaml --data.root")
    (path,) = kept.rglob("*.png")
    assert path.parent == kept / "7"
    with Image.open(path) as image:
        assert image.tobytes() == recogniser.read(digit).tobytes()
    page.locator("#truth").get_by_text("4", exact=True).click()
    said(page, f"4/{path.name}")
    assert list(kept.rglob("*.png")) == [kept / "4" / path.name]
    page.locator("#canvas canvas").first.wait_for()
    page.wait_for_timeout(1000)
    draw(page, 2)
    recognised(page)
    page.locator("#truth").get_by_text("2", exact=True).click()
    said(page, "2 so far")
    assert len(list((kept / "2").iterdir())) == 1


def test_nobody_is_asked_where_nothing_is_kept(page, recogniser, tmp_path):
    digit = tmp_path / "seven.png"
    Image.fromarray(recogniser.train_set[0].images[0, 0].numpy()).save(digit)
    page.get_by_role("tab", name="Recognise").click()
    upload(page, digit, into="upload")
    page.locator("#seen img").wait_for()
    assert page.locator("#truth").is_hidden()
