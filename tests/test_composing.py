"""Lines are composed of single signs, each from (seed, epoch, sample) alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.composing import COMMON, DIGITS, EACH, FOOT, SLOTS, Composer, Signs
from datamodules.dataset import NO_DIGESTS, OUTLIER, Collection, ImageDataset
from datamodules.normalizer import DigitNormalizer
from tests.test_normalizer import STROKES, draw


def signs_of(pixels, labels, classes):
    """Signs of (N, S, S) images, with how they lie learnt from them."""
    collection = Collection(pixels[:, None], labels, NO_DIGESTS, [str(row) for row in range(len(labels))])
    normalizer = DigitNormalizer.fit(collection.pixels, np.flatnonzero(labels != OUTLIER))
    return Signs.of(ImageDataset(collection, np.arange(len(labels))), normalizer, classes)


@pytest.fixture(scope="module")
def drawn():
    """60 digits of five kinds, and five images of what is not read: pixels and labels."""
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 5
    digits = [draw(list(STROKES)[label], pen=generator.uniform(2, 3)) for label in labels]
    pixels = (255 * np.stack([*digits, *[np.full((28, 28), 1.0)] * 5])).astype(np.uint8)
    return pixels, np.concatenate([labels, np.full(5, OUTLIER)])


@pytest.fixture(scope="module")
def composer(drawn):
    return Composer(signs_of(*drawn, 5), 32, 160)


def test_a_line_follows_from_seed_epoch_and_number_alone(composer):
    numbers = composer.draw(3, 5, 40)
    images, labels, middles = composer(numbers)
    assert images.shape == (40, 1, 32, 160)
    assert images.dtype == torch.uint8
    assert labels.shape == (40, DIGITS)
    assert middles.shape == labels.shape
    some, texts, places = composer(composer.draw(3, 5, 30)[[7, 21]])
    assert torch.equal(some, images[[7, 21]])
    assert torch.equal(texts, labels[[7, 21]])
    assert torch.equal(places, middles[[7, 21]])
    assert not torch.equal(composer.draw(3, 6, 40), numbers)
    assert not torch.equal(composer.draw(4, 5, 40), numbers)


def test_texts_are_of_all_signs_and_lengths_and_stand_on_the_line(composer):
    images, labels, middles = composer(composer.draw(0, 0, 600))
    lengths = (labels != OUTLIER).sum(dim=1)
    assert set(lengths.tolist()) == set(range(DIGITS + 1))  # none, where there is nothing that is read
    assert set(labels.unique().tolist()) == {-1, 0, 1, 2, 3, 4}
    assert 0.02 < (lengths == 0).float().mean() < 0.15
    assert (labels[:, 1:] == labels[:, :-1])[labels[:, 1:] != OUTLIER].float().mean() > 0.3  # signs come twice
    for row in range(len(labels)):  # filled up at the end only
        assert (labels[row, int(lengths[row]) :] == OUTLIER).all()
    assert (images.amax(dim=(1, 2, 3)) > 200).all()
    wide = (images[:, 0] > 128).any(dim=1).sum(dim=1).float()
    assert wide[lengths == 6].median() > 1.3 * wide[lengths == 1].median()  # some are underlined
    pairs = (labels[:, 1:] != OUTLIER).nonzero(as_tuple=True)
    assert (middles[:, 1:] > middles[:, :-1])[pairs].float().mean() > 0.99  # from left to right
    assert ((middles > 0) & (middles < 1))[labels != OUTLIER].all()


def test_commas_hang_below_the_foot_and_dots_do_not(composer):
    signs = composer.signs
    separators = signs.pixels[signs.starts[-4] : signs.starts[-3]]
    feet = np.array([np.flatnonzero((sign > 96).any(axis=1)).max() for sign in separators])
    assert 0.2 < (feet > FOOT + 1).mean() < 0.8
    assert feet.max() < 28


def test_the_last_three_signs_of_a_long_number_may_be_smaller(composer):
    numbers = composer.draw(0, 0, 60)
    numbers[:, 0] = 0.7  # five signs
    numbers[:, COMMON:] = 0.5  # all of one height
    numbers[:, 2] = 0.9  # which nothing ends
    heights = []
    for shrunk in (0.9, 0.45):
        numbers[:, 5] = shrunk
        common, each = numbers[:, :COMMON], numbers[:, COMMON:].view(60, SLOTS, EACH)
        labels, kinds = composer._text(common, each)
        tall = composer._place(common, each, kinds, composer._choose(each, labels, kinds)).tall
        assert ((kinds == 1).sum(dim=1) == 5).all()
        heights.append(tall[:, :5])
    assert torch.equal(heights[0][:, :2], heights[1][:, :2])
    ratio = heights[1][:, 2:] / heights[0][:, 2:]
    assert ((ratio > 0.54) & (ratio < 0.86)).all()


def test_a_hand_writes_the_same_sign_alike(drawn):
    pixels, labels = drawn[0][:60], drawn[1][:60]
    composer = Composer(signs_of(pixels, labels, 5), 32, 160)
    numbers = composer.draw(0, 0, 400)
    common, each = numbers[:, :COMMON], numbers[:, COMMON:].view(400, SLOTS, EACH)
    texts, kinds = composer._text(common, each)
    chosen = composer._choose(each, texts, kinds)
    again = (texts[:, 1:DIGITS] == texts[:, : DIGITS - 1]) & (texts[:, 1:DIGITS] != OUTLIER)
    assert 0.6 < (chosen[:, 1:DIGITS] == chosen[:, : DIGITS - 1])[again].float().mean() < 0.9


def test_without_outliers_every_line_is_read(drawn):
    pixels, labels = drawn
    _, texts, _ = Composer(signs_of(pixels[:60], labels[:60], 5), 32, 160)(Composer.draw(None, 0, 0, 200))
    assert ((texts != OUTLIER).sum(dim=1) > 0).all()


def test_signs_of_any_polarity_and_size_are_brought_into_one_form(drawn):
    pixels, labels = drawn[0][:60], drawn[1][:60]
    expected = signs_of(pixels, labels, 5).pixels[:60].astype(int)
    dark = signs_of(255 - pixels, labels, 5).pixels[:60].astype(int)
    assert np.abs(dark - expected).max() <= 1
    large = [np.asarray(Image.fromarray(image).resize((70, 70), Image.Resampling.BICUBIC)) for image in pixels]
    framed = np.pad(np.stack(large), ((0, 0), (20, 20), (20, 20)))
    again = signs_of(framed, labels, 5).pixels[:60].astype(int)
    assert again.shape == (60, 28, 28)
    assert np.abs(again - expected).mean() < 12
    similar = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(again, expected, strict=True)]
    assert min(similar) > 0.8


def test_small_signs_away_from_the_middle_are_whole(drawn):
    pixels, labels = drawn[0][:60], drawn[1][:60]
    generator = np.random.default_rng(1)
    framed, placed = (np.zeros((60, 84, 84), np.uint8) for _ in range(2))
    framed[:, 28:56, 28:56] = pixels
    for image, sign in zip(placed, pixels, strict=True):
        y, x = generator.integers(0, 57, 2)
        image[y : y + 28, x : x + 28] = sign
    expected, found = (signs_of(images, labels, 5).pixels[:60] for images in (framed, placed))
    ink = [images.sum(axis=(1, 2), dtype=float) for images in (expected, found)]
    np.testing.assert_allclose(ink[1], ink[0], rtol=0.05)
