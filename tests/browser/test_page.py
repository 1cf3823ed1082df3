"""The page in a real browser, as people use it."""

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page

from retrieval.query import Example
from tests.browser.conftest import upload

pytestmark = pytest.mark.browser


def wait_for_status(page: Page, text: str) -> None:
    page.wait_for_function(
        "text => document.querySelector('#status textarea, #status input')?.value.includes(text)", arg=text
    )


def captions(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("#matches .caption-label").all_inner_texts()]


def described(matches, index):
    return [f"{match.distance:.3f} · {match.label}\n{match.path.relative_to(index.folder)}" for match in matches]


def test_images_are_moved_only_where_that_is_asked_for(page):
    assert page.get_by_role("tab").all_inner_texts() == ["Search", "Recognise", "Read"]


def test_an_uploaded_image_finds_its_like(page, collection, index):
    query = collection / "query_images" / "grass_30.jpg"
    upload(page, query)
    wait_for_status(page, "4 matches for grass_30.jpg")
    assert captions(page) == described(index.search(query), index)
    shown = page.locator("#matches img")
    shown.nth(3).wait_for()
    assert all(shown.nth(number).evaluate("image => image.naturalWidth > 0") for number in range(4))


def test_a_sample_is_chosen_by_a_click(page):
    page.locator("#samples .thumbnail-lg").first.click()
    wait_for_status(page, "4 matches for grass_30.jpg")  # in natural order


def test_a_click_on_a_match_searches_with_it(page, collection):
    upload(page, collection / "query_images" / "sky_30.jpg")
    wait_for_status(page, "4 matches for sky_30.jpg")
    chosen = captions(page)[1].splitlines()[-1]
    page.locator("#matches .thumbnail-lg").nth(1).click()
    wait_for_status(page, f"4 matches for {Path(chosen).name}")
    assert chosen not in "".join(captions(page))  # byte-identical copies of the query are left out


def test_number_label_distance_and_explanation_are_settings(page, collection):
    upload(page, collection / "query_images" / "sky_30.jpg")
    wait_for_status(page, "4 matches")
    plain = page.locator("#matches img").first.get_attribute("src")
    page.get_by_label("Show which regions are similar").check()
    page.wait_for_function("before => document.querySelector('#matches img').getAttribute('src') !== before", arg=plain)
    page.locator("#k input[type=number]").fill("2")
    page.locator("#k input[type=number]").press("Tab")
    wait_for_status(page, "2 matches")
    page.get_by_label("Label", exact=True).click()
    page.get_by_role("option", name="sand").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('#matches .caption-label')].every(one => one.innerText.includes('sand'))"
    )
    page.locator("#threshold input[type=number]").fill("0")
    wait_for_status(page, "No match")
    page.locator("#threshold input[type=number]").fill("")  # no limit
    wait_for_status(page, "2 matches")
    page.get_by_label("Only what is similar").check()
    wait_for_status(page, "fewer than 20 different images: too few to tell a match from chance")


def test_several_queries_are_rows_in_place_of_one(page, collection):
    queries = sorted((collection / "query_images").iterdir())
    upload(page, queries[0])
    wait_for_status(page, "4 matches")
    upload(page, *queries, into="several")
    wait_for_status(page, "3 queries, one a row")
    shown = captions(page)
    assert len(shown) == 3 * 5
    assert [shown[row * 5] for row in range(3)] == [f"Query\n{path.name}" for path in queries]
    assert page.locator("#query img").count() == 0
    page.locator("#samples .thumbnail-lg").first.click()
    wait_for_status(page, "4 matches")
    page.get_by_text(queries[0].stem).wait_for(state="detached")  # of the list of several


def test_two_clicks_on_the_query_image_search_with_a_part(page, collection, index, tmp_path):
    query = tmp_path / "large.png"
    Image.open(collection / "query_images" / "grass_30.jpg").resize((1000, 800)).save(query)
    upload(page, query)
    wait_for_status(page, "4 matches for large.png.")
    box = page.locator("#query img").bounding_box()
    shown = min(box["width"] / 1000, box["height"] / 800)  # it is shown whole, in the middle
    left, top = box["x"] + (box["width"] - 1000 * shown) / 2, box["y"] + (box["height"] - 800 * shown) / 2
    page.mouse.click(left + 700 * shown, top + 600 * shown)
    wait_for_status(page, "Now click the opposite corner.")
    page.mouse.click(left + 200 * shown, top + 100 * shown)
    wait_for_status(page, "4 matches for large.png [")
    part = page.locator("#part textarea, #part input")
    region = tuple(map(int, part.input_value().split(",")))
    assert region == pytest.approx((200, 100, 700, 600), abs=12)
    assert captions(page) == described(index.search(Example(query, region)), index)
    part.fill("0,0,2000,100")
    part.press("Enter")
    wait_for_status(page, "does not lie in the image of 1000 × 800 pixels")
    part.fill("")
    part.press("Enter")
    wait_for_status(page, "4 matches for large.png.")
    assert captions(page) == described(index.search(query), index)


def test_images_are_searched_with_together_and_against(page, collection, index):
    like, unlike = (collection / "query_images" / f"{name}_30.jpg" for name in ("grass", "sky"))
    upload(page, like)
    wait_for_status(page, "4 matches for grass_30.jpg.")
    page.get_by_role("button", name="+ Like this").click()
    page.locator("#kept img").wait_for()
    upload(page, unlike)
    wait_for_status(page, "4 matches for grass_30.jpg + sky_30.jpg.")
    assert captions(page) == described(index.search([Example(like), Example(unlike)]), index)
    page.get_by_role("button", name="- Unlike this").click()
    wait_for_status(page, "4 matches for grass_30.jpg - sky_30.jpg.")
    assert captions(page) == described(index.search([Example(like), Example(unlike, weight=-1)]), index)
    assert page.locator("#kept .caption-label").all_inner_texts() == ["+ grass_30.jpg", "- sky_30.jpg"]
    page.locator("#matches .thumbnail-lg").first.click()
    wait_for_status(page, "4 matches for grass_30.jpg - sky_30.jpg + ")
    page.get_by_label("Remove Image").click()
    page.locator("#kept .thumbnail-lg").nth(1).click()
    wait_for_status(page, "4 matches for grass_30.jpg.")
    page.locator("#kept .thumbnail-lg").click()
    wait_for_status(page, "Choose a query image.")
    assert page.locator("#matches").count() == 0


def test_no_match_is_cut_off_or_covered(page, collection):
    page.locator("#k input[type=number]").fill("11")
    upload(page, collection / "query_images" / "sky_30.jpg")
    wait_for_status(page, "11 matches")
    page.locator("#matches img").nth(10).wait_for()
    assert page.evaluate("(one => one.scrollHeight <= one.clientHeight)(document.querySelector('#matches .grid-wrap'))")
    for match in page.locator("#matches .thumbnail-lg").all():
        image, caption = match.locator("img").bounding_box(), match.locator(".caption-label").bounding_box()
        assert caption["y"] >= image["y"] + image["height"] - 1


def test_no_ring_stays_around_what_was_chosen(page, collection):
    upload(page, collection / "query_images" / "sky_30.jpg")
    wait_for_status(page, "4 matches for sky_30.jpg")
    chosen = captions(page)[1].splitlines()[-1]
    page.locator("#matches .thumbnail-lg").nth(1).click()
    wait_for_status(page, f"4 matches for {Path(chosen).name}")
    page.mouse.move(0, 0)
    borders = (
        "() => [...document.querySelectorAll('#matches .thumbnail-lg')].map(one => getComputedStyle(one).borderColor)"
    )
    assert len(set(page.evaluate(borders))) == 1


@pytest.mark.parametrize(("tab", "into"), [("Search", "query"), ("Recognise", "upload"), ("Read", "sheet")])
def test_a_tiff_is_shown(page, collection, tmp_path, tab, into):
    picture = tmp_path / "scan.tif"
    Image.open(collection / "query_images" / "sky_30.jpg").save(picture)
    page.get_by_role("tab", name=tab).click()
    upload(page, picture, into=into)
    page.wait_for_function("into => document.querySelector(`#${into} img`)?.naturalWidth > 0", arg=into)


def test_a_setting_is_for_what_was_searched_last(page, collection):
    upload(page, *sorted((collection / "query_images").iterdir()), into="several")
    wait_for_status(page, "3 queries, one a row")
    upload(page, collection / "query_images" / "sky_30.jpg")
    wait_for_status(page, "4 matches for sky_30.jpg")
    page.locator("#k input[type=number]").fill("2")
    page.locator("#k input[type=number]").press("Tab")
    wait_for_status(page, "2 matches for sky_30.jpg")


@pytest.mark.parametrize("explained", [False, True])
def test_a_match_that_is_gone_leaves_the_others_shown(page, collection, explained):
    gone, aside = collection / "photos" / "sky" / "2.jpg", collection / "2.jpg"
    gone.rename(aside)
    try:
        if explained:
            page.get_by_label("Show which regions are similar").check()
        upload(page, collection / "query_images" / "sky_30.jpg")
        wait_for_status(page, "4 matches for sky_30.jpg")
        missing = [caption.endswith("sky/2.jpg\n(can't be shown)") for caption in captions(page)]
        assert sum(missing) == 1
        page.locator("#matches .thumbnail-lg").nth(missing.index(True)).click()
        page.get_by_text("2.jpg: no such file or directory").wait_for()
        assert str(collection) not in page.content()
    finally:
        aside.rename(gone)


def test_a_broken_image_gets_a_sentence_and_the_page_goes_on(page, collection, tmp_path):
    broken = tmp_path / "a broken.jpg"
    broken.write_bytes((collection / "query_images" / "sky_30.jpg").read_bytes()[:500])
    upload(page, broken)
    wait_for_status(page, "broken.jpg: ")
    assert page.locator("#status textarea, #status input").input_value().startswith("a broken.jpg: ")
    page.get_by_label("Remove Image").click()
    page.get_by_label("Remove Image").wait_for(state="hidden")
    page.wait_for_timeout(1000)  # the page is told that there is no image, before there is one again
    upload(page, collection / "query_images" / "sky_30.jpg")
    wait_for_status(page, "4 matches for sky_30.jpg")


def test_a_phone_shows_all_of_it_and_matches_at_once(browser, address, collection):
    phone = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = phone.new_page()
    page.goto(address)
    page.wait_for_selector("#query")

    def first_match_ends() -> float:
        page.wait_for_timeout(1000)  # it may be scrolled to
        box = page.locator("#matches img").first.bounding_box()
        return box["y"] + box["height"]

    upload(page, collection / "query_images" / "sky_30.jpg")
    wait_for_status(page, "4 matches")
    assert page.evaluate("scrollY") == 0
    assert first_match_ends() < 844
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    boxes = [page.locator("#matches img").nth(number).bounding_box() for number in range(4)]
    assert all(100 < box["width"] < 390 for box in boxes)
    page.locator("#samples .thumbnail-lg").nth(1).tap()  # which is further down
    wait_for_status(page, "4 matches for sand_30.jpg")
    assert 0 < first_match_ends() < 844
    upload(page, *sorted((collection / "query_images").iterdir()), into="several")
    wait_for_status(page, "3 queries, one a row")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tops = [page.locator("#matches img").nth(number).bounding_box()["y"] for number in range(15)]
    assert len({round(top) for top in tops}) == 3  # rows, which scroll sideways
    page.get_by_role("tab", name="Recognise").tap()
    page.locator("#canvas canvas").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    phone.close()


def test_the_keyboard_is_enough(page, collection):
    """Tab reaches the sample, Enter searches with it; arrows change a slider; Enter searches with a match."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#samples .thumbnail-lg') !== null"):
            break
    page.keyboard.press("Enter")
    wait_for_status(page, "4 matches for grass_30.jpg")
    page.locator("#k input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    wait_for_status(page, "5 matches")
    first = captions(page)[0].splitlines()[-1]
    page.locator("#matches .thumbnail-lg").first.focus()
    page.keyboard.press("Enter")
    wait_for_status(page, f"matches for {Path(first).name}")


@pytest.mark.parametrize("tab", ["Search", "Recognise", "Read"])
def test_a_screen_reader_finds_labels(page, collection, tab):
    page.get_by_role("tab", name=tab).click()
    if tab == "Search":
        upload(page, collection / "query_images" / "sky_30.jpg")
        wait_for_status(page, "4 matches")
    violations = Axe().run(page).response["violations"]
    grave = [
        (found["id"], node["html"][:200])
        for found in violations
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
        if not (found["id"] == "aria-prohibited-attr" and "empty" in node["html"])  # Gradio's, and harmless
    ]
    assert grave == []
