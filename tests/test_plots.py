"""What the pictures of a run show, and where."""

import pytest
import torch

from lightning_modules.plots import plot_augmentation


@pytest.mark.parametrize("count", [1, 3, 8, 12])
def test_each_augmented_image_stands_under_its_own(count):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    places = {}
    for axes in plot_augmentation(images, images + 100).axes:
        place = axes.get_subplotspec()
        places[int(axes.images[0].get_array()[0, 0])] = (place.rowspan.start, place.colspan.start)
    assert len(places) == 2 * count
    for number in range(count):
        row, column = places[number]
        assert places[number + 100] == (row + 1, column)
