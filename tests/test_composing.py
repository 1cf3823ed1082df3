"""Lines are composed of single signs, each from (seed, epoch, sample) alone."""

import numpy as np
import pytest
import torch

from datamodules.composing import DIGITS, Composer, Signs
from datamodules.dataset import OUTLIER
from tests.test_normalizer import STROKES, draw


@pytest.fixture(scope="module")
def composer():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 5
    digits = [draw(list(STROKES)[label], pen=generator.uniform(2, 3)) for label in labels]
    others = [np.full((28, 28), 1.0)] * 5
    pixels = (255 * np.stack([*digits, *others])).astype(np.uint8)
    return Composer(Signs.of(pixels, np.concatenate([labels, np.full(5, OUTLIER)]), 5), 32, 160)


def test_a_line_follows_from_seed_epoch_and_number_alone(composer):
    numbers = composer.draw(3, 5, 40)
    images, labels = composer(numbers)
    assert images.shape == (40, 1, 32, 160)
    assert images.dtype == torch.uint8
    assert labels.shape == (40, DIGITS)
    some, texts = composer(composer.draw(3, 5, 30)[[7, 21]])
    assert torch.equal(some, images[[7, 21]])
    assert torch.equal(texts, labels[[7, 21]])
    assert not torch.equal(composer.draw(3, 6, 40), numbers)
    assert not torch.equal(composer.draw(4, 5, 40), numbers)


def test_texts_are_of_all_signs_and_lengths_and_stand_on_the_line(composer):
    images, labels = composer(composer.draw(0, 0, 600))
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


def test_without_outliers_every_line_is_read(composer):
    kept = composer.signs.starts[-2]
    starts = np.append(composer.signs.starts[:-1], kept)
    signs = Signs(composer.signs.pixels[:kept], starts, composer.signs.boxes[:kept])
    _, labels = Composer(signs, 32, 160)(composer.draw(0, 0, 200))
    assert ((labels != OUTLIER).sum(dim=1) > 0).all()


def test_other_sizes_of_images_are_taken(composer):
    pixels = np.zeros((10, 50, 50), np.uint8)
    pixels[:, 8:42, 20:30] = 255
    signs = Signs.of(pixels, np.arange(10) % 2, 2)
    assert signs.pixels.shape[1:] == (28, 28)
    images, labels = Composer(signs, 32, 160)(composer.draw(0, 0, 4))
    assert images.amax() > 200
    assert labels.max() <= 1
