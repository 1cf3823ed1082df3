"""Labelled lines are varied, each from (seed, epoch, sample) alone."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from datamodules.errors import UserError
from datamodules.line_augmentation import LineAugmentation

NOTHING = {"slant": 0, "stretch": (1, 1), "zoom": (1, 1), "translate": 0, "elastic": 0, "pen": 0, "contrast": 0}


def draw_lines(count, signs=5, wide=28):
    """(count, 1, 32, 160), uint8: rings side by side from the left."""
    y, x = np.mgrid[:32, :160]
    away = np.hypot(y - 16, (x % wide) - wide / 2)
    line = np.where((np.abs(away - 9) < 2) & (x < signs * wide), 255, 0)
    return torch.from_numpy(np.tile(line.astype(np.uint8), (count, 1, 1, 1)))


def test_a_line_follows_from_seed_epoch_and_number_alone():
    lines, vary = draw_lines(20), LineAugmentation()
    numbers = vary.draw(3, 5, 20)
    varied = vary(lines, numbers)
    assert varied.shape == (20, 1, 32, 160)
    assert varied.dtype == torch.float32
    assert varied.min() >= 0
    assert varied.max() <= 1
    assert torch.equal(vary(lines[:2], vary.draw(3, 5, 20)[[7, 11]]), varied[[7, 11]])
    assert not torch.equal(vary.draw(3, 6, 20), numbers)
    assert not torch.equal(vary.draw(4, 5, 20), numbers)
    assert not torch.equal(varied[0], varied[1])


def test_nothing_to_vary_leaves_a_line_as_it_is():
    lines, vary = draw_lines(3), LineAugmentation(**NOTHING, grain=0)
    assert torch.allclose(vary(lines, vary.draw(0, 0, 3)), lines / 255, atol=1e-4)
    blank = torch.zeros_like(lines)
    assert torch.equal(LineAugmentation(grain=0)(blank, vary.draw(0, 0, 3)), blank.float())


def test_all_signs_stay_in_the_image():
    for signs, wide in ((5, 32), (2, 30)):  # over the whole width, and with room behind
        lines, vary = draw_lines(200, signs, wide), LineAugmentation(grain=0)
        varied = vary(lines, vary.draw(0, 0, 200))
        holes = [ndimage.label(line < 0.2)[1] - 1 for line in varied[:, 0].numpy()]  # but the ground around them
        assert np.mean(np.equal(holes, signs)) > 0.9
        right = (varied[:, 0] > 0.3).any(dim=1).int().flip(1).argmax(dim=1)
        assert len(right.unique()) > 3


@pytest.mark.parametrize(
    ("setting", "place", "more"),
    [
        ({"pen": 1.0}, 5, True),
        ({"zoom": (0.7, 1.2)}, 1, True),
        ({"contrast": 1.0}, 6, False),
        ({"grain": 1.0}, 9, True),
    ],
)
def test_strokes_get_thicker_higher_fainter_and_grainy(setting, place, more):
    lines, vary = draw_lines(1), LineAugmentation(**{**NOTHING, "grain": 0, **setting})
    low, high = vary.draw(0, 0, 1), vary.draw(0, 0, 1)
    low[:, place], high[:, place] = 0.01, 0.99
    changed = (vary(lines // 2, high).sum() / vary(lines // 2, low).sum()).item()
    assert changed > 1.1 if more else changed < 0.9


@pytest.mark.parametrize("setting", [{"stretch": (0, 1)}, {"zoom": (1.2, 1)}, {"slant": -0.1}, {"grain": 2}])
def test_settings_out_of_range_are_refused_by_name(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        LineAugmentation(**setting)
