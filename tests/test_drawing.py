"""Drawings are brought to the form that a collection's digits have."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from datamodules.images import to_pixels
from retrieval.app.drawing import DrawingStyle
from tests.conftest import draw_digit, draw_photo

MNIST = DrawingStyle(28, light_ink=True, extent=20 / 28, by_mass=True)


def drawing(box, size=(280, 200), ground="white", ink="black", width=20):
    image = Image.new("RGB", size, ground)
    ImageDraw.Draw(image).rectangle(box, outline=ink, width=width)
    return image


@pytest.mark.parametrize("box", [(20, 30, 100, 150), (180, 60, 240, 150)])
@pytest.mark.parametrize("colours", [("white", "black"), ("black", "white"), ("#eee8aa", "#000080")])
def test_a_drawing_is_inverted_scaled_and_centred(box, colours):
    digit = MNIST.apply(drawing(box, ground=colours[0], ink=colours[1]))
    assert digit.size == (28, 28)
    pixels = np.asarray(digit, np.float32)
    ink = pixels > 64
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in (19, 20)
    assert (np.ptp(rows) + 1) / (np.ptp(columns) + 1) == pytest.approx((box[3] - box[1]) / (box[2] - box[0]), rel=0.1)
    mass = [(pixels.sum(axis=axis) @ (np.arange(28) + 0.5)) / pixels.sum() for axis in (0, 1)]
    assert mass == pytest.approx([14, 14], abs=0.6)
    assert pixels[0].max() == 0
    assert pixels.max() > 200


def test_dark_ink_stays_dark_where_the_collection_has_it():
    digit = DrawingStyle(28, light_ink=False, extent=0.5, by_mass=False).apply(drawing((20, 30, 100, 150)))
    pixels = np.asarray(digit)
    assert pixels[0].min() == 255
    assert np.ptp(np.flatnonzero((pixels < 128).any(axis=1))) + 1 == pytest.approx(14, abs=1)


def test_an_empty_drawing_is_none():
    assert MNIST.apply(Image.new("RGB", (280, 280), "white")) is None


def test_the_style_of_a_collection_is_measured():
    pixels = np.stack([to_pixels(draw_digit(digit, seed, 40), 40) for digit in range(3) for seed in range(20)])
    style = DrawingStyle.of(pixels)
    assert (style.size, style.light_ink) == (40, True)
    assert 0.6 < style.extent < 0.9
    assert not DrawingStyle.of(255 - pixels).light_ink
    again = np.stack([to_pixels(style.apply(Image.fromarray(one[0])), 40) for one in pixels])
    assert DrawingStyle.of(again).extent == pytest.approx(style.extent, abs=0.05)


def test_images_without_ink_do_not_hurt():
    assert DrawingStyle.of(np.zeros((3, 1, 8, 8), np.uint8)).extent == 1


def test_photographs_are_no_drawings():
    pixels = np.stack([to_pixels(draw_photo(kind, seed), 32) for kind in range(3) for seed in range(4)])
    assert DrawingStyle.of(pixels) is None
