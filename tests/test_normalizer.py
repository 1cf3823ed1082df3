"""Any picture of a digit is brought into the form of the training images: pictures drawn by program."""

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_digits

from datamodules.images import decode_image
from datamodules.normalizer import DigitNormalizer, normalize
from tests.conftest import draw_photo

# Strokes of digits in a box of 1 × 1.6.
STROKES = {
    0: [[(0.5 + 0.5 * np.sin(a), 0.8 - 0.8 * np.cos(a)) for a in np.linspace(0, 2 * np.pi, 60)]],
    1: [[(0.5, 0), (0.5, 1.6)]],
    2: [[(0, 0.2), (0.4, 0), (0.9, 0.2), (0.9, 0.6), (0, 1.6), (1, 1.6)]],
    4: [[(0.6, 0), (0, 1), (1, 1)], [(0.7, 0.5), (0.7, 1.6)]],
    7: [[(0, 0), (1, 0), (0.4, 1.6)]],
}


def draw(digit, size=(28, 28), height=19.0, pen=2.5, at=None):
    """(H, W), float in [0, 1]: 1 where the pen was; drawn at four times the size."""
    width = height / 1.6
    left, top = at or ((size[0] - width) / 2, (size[1] - height) / 2)
    image = Image.new("L", (size[0] * 4, size[1] * 4))
    brush = ImageDraw.Draw(image)
    for stroke in STROKES[digit]:
        points = [((left + x * width) * 4, (top + y * width) * 4) for x, y in stroke]
        brush.line(points, fill=255, width=round(pen * 4), joint="curve")
        for x, y in points:
            brush.ellipse((x - pen * 2, y - pen * 2, x + pen * 2, y + pen * 2), fill=255)
    return np.asarray(image.resize(size, Image.Resampling.BOX)) / 255


def training(light_ink=True):
    """200 images as a collection has them: digits of all kinds with pens of 2 to 3 pixels."""
    generator = np.random.default_rng(0)
    for step in range(200):
        ink = draw(list(STROKES)[step % 5], pen=generator.uniform(2, 3))
        grey = (255 * ink).round().astype(np.uint8)
        yield grey if light_ink else 255 - grey


def stacked(images):
    """(N, 1, S, S), as collections have them."""
    return np.stack(list(images))[:, None]


@pytest.fixture(scope="module")
def normalizer():
    return DigitNormalizer.fit(stacked(training()))


def paint(ink, paper=(240, 238, 235), pen=(30, 30, 40), light=1.0, grain=2.0, lines=None, quality=85):
    """A JPEG of ink, (H, W), on paper."""
    paper, pen = np.array(paper, dtype=float), np.array(pen, dtype=float)
    picture = np.broadcast_to(paper, (*ink.shape, 3)).copy()
    if lines is not None:
        picture[lines] = (150, 175, 215)
    picture = (picture * (1 - ink[..., None]) + pen * ink[..., None]) * np.asarray(light)[..., None]
    picture += np.random.default_rng(1).normal(0, grain, picture.shape)
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return Image.open(file)


SIZE = (640, 480)
ACROSS, DOWN = np.meshgrid(np.linspace(0, 1, SIZE[0]), np.linspace(0, 1, SIZE[1]))
RULED = (np.mgrid[: SIZE[1], : SIZE[0]][0] - 0.02 * np.arange(SIZE[0])) % 40 < 2
FRAME = np.zeros(SIZE[::-1], dtype=bool)
FRAME[20:-20, 20:-20] = True
FRAME[26:-26, 26:-26] = False
TABLE = ACROSS + 0.1 * DOWN < 0.15
PICTURES = {
    "plain": ({}, {}),
    "small": ({"height": 60.0, "pen": 4}, {}),
    "thin pen": ({"pen": 2}, {}),
    "marker": ({"pen": 34}, {}),
    "off centre": ({"at": (430, 40), "height": 200.0}, {}),
    "light on dark": ({}, {"paper": (30, 40, 35), "pen": (230, 230, 220)}),
    "faint pencil": ({"pen": 5}, {"pen": (195, 195, 195)}),
    "blue pen": ({"pen": 4}, {"pen": (90, 110, 200)}),
    "yellow ink": ({}, {"paper": (252, 252, 250), "pen": (250, 240, 90)}),
    "shadow with grain": ({}, {"light": 1 - 0.4 * ACROSS, "grain": 8.0}),
    "edge of a shadow": ({}, {"light": np.where(DOWN + 0.2 * ACROSS < 0.6, 0.7, 1.0)}),
    "shadow across the digit": ({"height": 240.0}, {"light": np.where(DOWN < 0.3, 0.58, 1.0)}),
    "shadow from a corner": ({"height": 240.0}, {"light": np.where(ACROSS - DOWN > 0.15, 0.58, 1.0)}),
    "vignette": ({}, {"light": 1 - ((ACROSS - 0.5) ** 2 + (DOWN - 0.5) ** 2)}),
    "jpeg blocks": ({}, {"quality": 12}),
    "ruled paper": ({"height": 150.0, "pen": 8}, {"lines": RULED}),
    "squared paper": ({"height": 150.0, "pen": 8}, {"lines": RULED | (np.arange(SIZE[0]) % 40 < 2)[None]}),
    "dark table": ({"height": 200.0}, {"light": np.where(TABLE, 0.2, 1.0)}),
}


def untouched(image, normalizer):
    """Whether an image, (S, S), comes through as it is."""
    seen = normalize(Image.fromarray(image), len(image), 1, normalizer)
    return seen.digits == 1 and np.array_equal(seen.pixels[0], image)


def alike(found, digit, normalizer):
    """The correlation of what was found with the same digit as the training images have it."""
    assert found.reason is None
    assert found.image.shape == (28, 28)
    assert found.image.dtype == np.uint8
    wanted = normalizer.transform(np.pad((255 * draw(digit)).astype(np.uint8), ((3, 9), (8, 4)))).image
    blurred = [
        np.asarray(Image.fromarray(i).filter(ImageFilter.GaussianBlur(1))).ravel() for i in (wanted, found.image)
    ]
    return np.corrcoef(blurred)[0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", PICTURES)
def test_a_digit_is_found_on_any_paper(normalizer, kind):
    drawn, painted = PICTURES[kind]
    for digit in STROKES:
        ink = draw(digit, SIZE, **{"height": 300.0, "pen": 14, **drawn})
        found = normalizer.transform(paint(ink, **painted))
        assert alike(found, digit, normalizer) > 0.85, (kind, digit)
        assert found.digits == 1
        ys, xs = np.nonzero(ink > 0.5)
        assert np.abs(np.array(found.box) - (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)).max() <= 12


def test_a_frame_is_not_the_digit(normalizer):
    ink = np.where(FRAME, 1.0, draw(0, SIZE, height=200.0, pen=10))
    assert alike(normalizer.transform(paint(ink)), 0, normalizer) > 0.85


def test_an_image_of_the_collection_passes_untouched(normalizer):
    for image in list(training())[:20]:
        assert untouched(image, normalizer)
    assert not untouched(np.roll(image, 4, axis=1), normalizer)


def test_dark_digits_on_light_ground_are_learnt():
    normalizer = DigitNormalizer.fit(stacked(training(light_ink=False)))
    assert (normalizer.ground, normalizer.ink) == (255, 0)
    found = normalizer.transform(paint(draw(4, SIZE, height=300.0, pen=14)))
    assert found.image[0, 0] == 255
    assert found.image.min() < 20


def in_colours(ground, ink):
    """200 images in the colours of ground and ink: (N, 3, S, S)."""
    share = stacked(training()) / 255
    ground, ink = (np.array(colour).reshape(3, 1, 1) for colour in (ground, ink))
    return (ground + share * (ink - ground)).round().astype(np.uint8)


def test_digits_are_drawn_in_the_colours_of_the_training_images():
    pixels = in_colours((250, 255, 240), (20, 40, 200))
    normalizer = DigitNormalizer.fit(pixels)
    for image in pixels[:20]:
        picture = Image.fromarray(image.transpose(1, 2, 0))
        np.testing.assert_array_equal(normalize(picture, 28, 3, normalizer).pixels, image)
    seen = normalize(paint(draw(4, SIZE, height=300.0, pen=14)), 28, 3, normalizer).pixels
    assert seen[:, 0, 0].tolist() == [250, 255, 240]
    strongest = seen.reshape(3, -1)[:, seen[0].argmin()]
    np.testing.assert_allclose(strongest.astype(int), (20, 40, 200), atol=3)
    again = DigitNormalizer.from_dict(json.loads(json.dumps(normalizer.to_dict())))
    assert again == normalizer


def test_grey_images_of_three_channels_are_seen_as_those_of_one(normalizer):
    assert DigitNormalizer.fit(np.repeat(stacked(training()), 3, axis=1)) == normalizer
    assert "colours" not in normalizer.to_dict()  # so that what knows it by its state still does


def test_the_state_is_json(normalizer):
    again = DigitNormalizer.from_dict(json.loads(json.dumps(normalizer.to_dict())))
    assert again == normalizer
    assert json.loads(json.dumps(asdict(normalizer))) == {**normalizer.to_dict(), "colours": None}


def test_photographs_have_no_normalizer():
    photos = [np.asarray(draw_photo(k % 3, k, (64, 64))).transpose(2, 0, 1) for k in range(60)]
    assert DigitNormalizer.fit(np.stack(photos)) is None


@pytest.mark.parametrize("side", [1, 2, 9])
def test_collections_without_digits_have_none(side):
    noise = np.random.default_rng(0).integers(0, 256, (20, 3, side, side), np.uint8)
    for pixels in (noise, np.zeros_like(noise), np.full_like(noise, 255), noise // 200 * 255):
        DigitNormalizer.fit(pixels)  # whatever it is, it is no error
    assert DigitNormalizer.fit(np.zeros_like(noise)) is None


def test_digits_of_scikit_learn():
    images = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    normalizer = DigitNormalizer.fit(stacked(images))
    assert (normalizer.size, normalizer.ground) == (8, 0)
    assert normalizer.extent[1] > 0.9
    assert np.mean([untouched(image, normalizer) for image in images[::10]]) > 0.99
    found = normalizer.transform(paint(draw(7, SIZE, height=300.0, pen=14)))
    assert found.image.shape == (8, 8)
    assert found.image[0].max() > 200


@pytest.mark.parametrize("grain", [0.0, 5.0])
def test_an_empty_picture_has_a_reason(normalizer, grain):
    found = normalizer.transform(paint(np.zeros(SIZE[::-1]), grain=grain))
    assert found.image is None
    assert found.box is None
    assert found.digits == 0
    assert "ink" in found.reason


def test_several_digits_are_counted(normalizer):
    ink = draw(2, SIZE, height=200.0, pen=12, at=(100, 120)) + draw(7, SIZE, height=200.0, pen=12, at=(380, 120))
    assert normalizer.transform(paint(ink)).digits == 2


def test_a_broken_stroke_is_one_digit(normalizer):
    ink = draw(0, SIZE, height=300.0, pen=8)
    ink[230:240] = 0
    found = normalizer.transform(paint(ink))
    assert found.digits == 1
    assert alike(found, 0, normalizer) > 0.85


def test_a_faint_side_stays(normalizer):
    found = normalizer.transform(paint(draw(0, SIZE, height=300.0, pen=8) * (1 - 0.7 * (ACROSS > 0.5))))
    assert alike(found, 0, normalizer) > 0.85


def test_modes_and_sizes(normalizer):
    ink = draw(4, SIZE, height=300.0, pen=14)
    black = Image.fromarray((255 * (1 - ink)).astype(np.uint8))
    clear = Image.merge("RGBA", [Image.new("L", SIZE, 250)] * 3 + [Image.fromarray((255 * ink).astype(np.uint8))])
    small = black.resize((20, 15), Image.Resampling.BOX)
    large = black.resize((5200, 3900))
    for picture in (black, black.convert("1"), black.convert("P"), clear, small, large):
        file = io.BytesIO()
        picture.save(file, "png")
        read = decode_image(file.getvalue(), Path("4.png"), channels=3)
        assert alike(normalizer.transform(read), 4, normalizer) > 0.8
    assert normalizer.transform(np.zeros((8, 8), dtype=np.uint8)).image is None
    assert normalizer.transform(np.eye(8, dtype=np.uint8) * 255).image is not None


def test_the_same_bits_each_time(normalizer):
    picture = np.asarray(paint(draw(2, SIZE, height=300.0, pen=6), grain=9.0))
    first, second = normalizer.transform(picture), normalizer.transform(picture.copy())
    assert first.image.tobytes() == second.image.tobytes()
    assert (first.box, first.digits) == (second.box, second.digits)


def test_mnist_passes_untouched(shared):
    from torchvision.datasets import MNIST

    train, test = (MNIST(str(shared / "data"), train=train).data.numpy() for train in (True, False))
    normalizer = DigitNormalizer.fit(stacked(train))
    assert (normalizer.size, normalizer.ground, normalizer.by_mass) == (28, 0, True)
    assert np.mean([untouched(image, normalizer) for image in test[::5]]) >= 0.997


@pytest.mark.parametrize(("side", "height"), [(768, 450), (768, 600), (1536, 1200)])
@pytest.mark.parametrize("pen", [1, 2, 3])
def test_a_hairline_on_a_large_canvas_is_drawn_as_other_digits_are(normalizer, side, height, pen):
    for digit in STROKES:
        image = Image.new("L", (side, side), 255)
        width, top = height / 1.6, (side - height) / 2
        for stroke in STROKES[digit]:
            points = [((side - width) / 2 + x * width, top + y * width) for x, y in stroke]
            ImageDraw.Draw(image).line(points, fill=0, width=pen)
        assert alike(normalizer.transform(image), digit, normalizer) > 0.85


@pytest.mark.parametrize("size", [(1000, 5), (5, 1000), (200, 1), (1, 200), (3000, 10)])
def test_a_picture_as_thin_as_a_rule_is_no_error(normalizer, size):
    noise = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    for pixels in (noise, 255 * (noise > 250).astype(np.uint8)):
        found = normalizer.transform(pixels)
        assert found.digits > 0 or found.reason == "no ink stands out from the ground"
