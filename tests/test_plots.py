"""What the pictures of a run show, and where."""

import io

import pytest
import torch

from datamodules.text import short_name
from lightning_modules.evaluation import Predictions
from lightning_modules.plots import plot_augmentation, plot_confusion_matrix


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


def test_long_class_names_leave_room_for_the_matrix():
    predictions = Predictions(torch.eye(2), torch.arange(2), torch.eye(2))
    figure = plot_confusion_matrix(predictions, ["a" * 120, "b" * 120])
    figure.savefig(io.BytesIO())
    assert figure.axes[0].get_window_extent().width > figure.bbox.width / 3


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("short.png", "short.png"),
        ("caf\udce9\n.png", "caf\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.png"),
        ("a" * 30 + ".png", "…" + "a" * 19 + ".png"),
    ],
)
def test_a_name_is_shown_on_one_line(name, shown):
    assert short_name(name) == shown
    assert len(shown) <= 24
