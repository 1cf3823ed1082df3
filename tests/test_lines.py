"""Numbers are found on pictures that are drawn here: sheets, ruled paper, photographs."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from datamodules.lines import crop_line, find_lines
from tests.conftest import draw_photo
from tests.test_normalizer import STROKES, draw


def sheet(texts, pitch=150, down=170, digit=64, size=(1400, 1000), tilt=0.0, ruled=False, seed=0):
    """Rows of numbers in dark ink on paper in a shadow with grain, photographed a little askew."""
    generator = np.random.default_rng(seed)
    ink = np.zeros(size[::-1])
    for row, numbers in enumerate(texts):
        left = 90
        for number in numbers:
            for sign in number:
                drawn = draw(int(sign), (digit, digit), height=0.8 * digit, pen=0.09 * digit)
                top = 80 + row * down + int(generator.integers(-4, 5))
                ink[top : top + digit, left : left + digit] = np.maximum(
                    ink[top : top + digit, left : left + digit], drawn
                )
                left += int(0.72 * digit)
            left += pitch - int(0.72 * digit)
    paper = 220 * np.linspace(1, 0.7, size[0]) * np.ones(size[::-1])
    if ruled:
        paper[60 :: down // 2] -= 60
        paper[61 :: down // 2] -= 60
    pixels = paper * (1 - ink) + 50 * ink
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).rotate(tilt, Image.Resampling.BICUBIC, fillcolor=150)
    grain = generator.normal(0, 3, size[::-1])
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)).convert("RGB")


def digits(count):
    return [str(list(STROKES)[place % 5]) for place in range(count)]


def test_single_digits_in_a_grid_are_found_in_order():
    lines = find_lines(sheet([digits(8)] * 5), 32)
    assert [line.row for line in lines] == [row for row in range(5) for _ in range(8)]
    lefts = np.array([line.box[0] for line in lines]).reshape(5, 8)
    tops = np.array([line.box[1] for line in lines]).reshape(5, 8)
    assert (np.diff(lefts, axis=1) > 100).all()
    assert (np.diff(tops, axis=0) > 100).all()
    assert all(line.pixels.shape[0] == 32 for line in lines)


# Not both: the rulings would end at the picture's turned corners.
@pytest.mark.parametrize(("tilt", "ruled"), [(0, False), (1.5, False), (-2, False), (0, True)])
def test_numbers_side_by_side_are_found_on_ruled_paper_too(tilt, ruled):
    texts = [["204", "1472", "0", "77", "42"], ["10", "4", "2710", "741"]]
    lines = find_lines(sheet(texts, pitch=140, tilt=tilt, ruled=ruled), 32)
    assert [line.row for line in lines] == [0] * 5 + [1] * 4
    widths = [line.box[2] - line.box[0] for line in lines]
    assert widths[1] > widths[0] > widths[2]


def test_a_line_is_straightened_and_its_ink_light():
    (line,) = find_lines(sheet([["2147042"]], tilt=4), 32)
    heights = [(np.flatnonzero(line.pixels[:, x : x + 20].max(axis=1) > 150)).mean() for x in range(8, 100, 20)]
    assert np.ptp(heights) < 6
    assert line.pixels.max() > 200
    assert np.median(line.pixels) < 40


def test_a_box_is_in_the_pixels_of_the_picture():
    small = sheet([["204"]])
    (line,) = find_lines(small, 32)
    large = small.resize((4 * small.width, 4 * small.height), Image.Resampling.BICUBIC)
    (enlarged,) = find_lines(large, 32)
    assert np.allclose(np.array(enlarged.box) / 4, line.box, atol=6)


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_nothing_is_found_on_blank_paper(grey):
    assert find_lines(Image.new("RGB", (300, 200), (grey,) * 3), 32) == []
    assert find_lines(Image.new("L", (1, 1), grey), 32) == []
    grain = np.random.default_rng(0).normal(grey, 4, (300, 400)).clip(0, 255).astype(np.uint8)
    assert find_lines(Image.fromarray(grain), 32) == []
    assert crop_line(Image.new("RGB", (300, 200), (grey,) * 3), 32).max() == 0


def test_nothing_is_found_on_ruled_paper_that_is_blank():
    ruled = sheet([], ruled=True)
    assert find_lines(ruled, 32) == []
    assert crop_line(ruled, 32).max() == 0


@pytest.mark.parametrize("pen", [1, 2, 3])
def test_a_hairline_on_a_large_canvas_does_not_fade(pen):
    image = Image.new("L", (900, 900), 255)
    points = [(250 + 400 * x, 150 + 400 * y) for x, y in STROKES[2][0]]
    ImageDraw.Draw(image).line(points, fill=0, width=pen)
    (line,) = find_lines(image, 32)
    assert line.pixels.max() > 150
    assert 0.05 < (line.pixels > 100).mean() < 0.5
    assert crop_line(image, 32).max() > 150


@pytest.mark.parametrize("size", [(1000, 5), (5, 1000), (200, 1), (1, 200), (3000, 10), (113, 112)])
def test_a_picture_as_thin_as_a_rule_is_no_error(size):
    noise = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    for pixels in (noise, 255 * (noise > 250).astype(np.uint8)):
        find_lines(Image.fromarray(pixels), 32)
        crop_line(pixels, 32)


def test_photographs_are_looked_through_without_an_error():
    for kind in range(3):
        find_lines(draw_photo(kind, 1), 32)


def test_a_picture_of_one_line_is_cut_to_it():
    pixels = crop_line(sheet([["2147"]], size=(320, 240)), 32)
    assert pixels.shape[0] == 32
    assert pixels.max() > 200
    rows = np.flatnonzero(pixels.max(axis=1) > 128)
    assert rows[0] < 6
    assert rows[-1] > 25


def test_a_picture_of_one_line_is_cut_as_read_cuts_it():
    field = sheet([["204"]], size=(1400, 240))
    (line,) = find_lines(field, 32)
    np.testing.assert_array_equal(crop_line(field, 32), line.pixels)
