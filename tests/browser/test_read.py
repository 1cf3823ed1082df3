"""Numbers are read on a picture that is chosen on the page, in a real browser."""

import pytest
from PIL import Image

from lightning_modules.checkpoint import load_network
from lightning_modules.embedded import READER
from lightning_modules.networks import LineReader
from lightning_modules.number_reading import read_picture
from tests.browser.conftest import upload
from tests.test_lines import sheet

pytestmark = pytest.mark.browser


def wait_for_text(page, text):
    page.wait_for_function("text => document.querySelector('#read textarea').value === text", arg=text, timeout=60_000)


def test_numbers_on_a_picture_are_read_and_marked(page, tmp_path):
    picture = sheet([["204", "17"], ["42"]])
    picture.save(tmp_path / "sheet.png")
    numbers = read_picture(load_network(READER, LineReader), picture)
    first, second, third = (f"{number.text}{'?' if number.doubtful else ''}" for number in numbers)
    page.get_by_role("tab", name="Read").click()
    upload(page, tmp_path / "sheet.png", into="sheet")
    wait_for_text(page, f"{first}   {second}\n{third}")
    page.wait_for_selector("#marked img")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No number was found."),
        (b"%PDF-1.7", "picture.png: a document, which is not read; save it as JPEG or PNG"),
    ],
)
def test_a_picture_without_numbers_or_a_broken_one_gets_a_sentence(page, tmp_path, content, text):
    path = tmp_path / "picture.png"
    Image.new("RGB", (300, 200), "white").save(path)
    if content is not None:
        path.write_bytes(content)
    page.get_by_role("tab", name="Read").click()
    upload(page, path, into="sheet")
    wait_for_text(page, text)
