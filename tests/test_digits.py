"""What the network that comes with the package is trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from datamodules import DigitsDataModule, OptDigitsDataModule, SemeionDataModule, UserError, strokes
from datamodules.dataset import OUTLIER, Collection
from datamodules.splits import split
from tests.test_datamodules import mnist, set_up  # noqa: F401 - a fixture

PENS = np.array([0.08, 0.12])


def semeion(folder, count=40):
    """A file as Semeion is: pixels, the digit as ten flags, one more number; lines broken anywhere."""
    generator = np.random.default_rng(0)
    pixels = np.zeros((count, 16, 16), dtype=int)
    pixels[:, 2:14, 6:10] = 1
    pixels[np.arange(count), generator.integers(2, 14, count), 12] = 1
    rows = [[*pixels[row].ravel(), *np.eye(10, dtype=int)[row % 10], 0] for row in range(count)]
    words = [f"{value}.0000" for row in rows for value in row]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "semeion.data").write_text("\n".join(" ".join(words[i : i + 100]) for i in range(0, len(words), 100)))
    return pixels


def test_semeion_is_read_wherever_its_lines_are_broken(tmp_path):
    pixels = semeion(tmp_path)
    collection = SemeionDataModule(str(tmp_path)).load()
    assert np.array_equal(collection.pixels[:, 0], 255 * pixels)
    assert collection.labels.tolist() == [row % 10 for row in range(40)]
    chosen = SemeionDataModule(str(tmp_path), classes=[7, 1]).load()
    assert chosen.labels.tolist() == [1, 0] * 4


def test_semeion_that_is_missing_or_damaged_is_a_clear_error(tmp_path, monkeypatch):
    def offline(*args):
        raise OSError("<urlopen error no route>")

    monkeypatch.setattr("datamodules.semeion.download_url", offline)
    data = SemeionDataModule(str(tmp_path))
    with pytest.raises(UserError, match=r"no such file, and it can't be downloaded \(.*no route.*--data.root"):
        data.prepare_data()
    for damaged in ("0.0 1.0 what", ""):
        (tmp_path / "semeion.data").write_text(damaged)
        with pytest.raises(UserError, match=r"semeion.data: damaged .*remove it and start again"):
            data.load()


def test_the_real_semeion(shared):
    folder = shared / "data" / "handwriting"
    if not (folder / "semeion.data").is_file():
        pytest.skip("Semeion is not there")
    data = set_up(SemeionDataModule(str(folder)))
    assert len(data.train_set) + len(data.val_set) == 1593
    counts = np.bincount(data.train_set.collection.labels)
    assert counts.tolist() == [161, 162, 159, 159, 161, 159, 161, 158, 155, 158]


@pytest.mark.parametrize("digit", range(10))
def test_every_form_of_a_digit_is_drawn_in_the_middle_as_thick_as_the_pen(digit):
    generator = np.random.default_rng(digit)
    for form in strokes.DIGITS[digit] + strokes.HURRIED[digit]:
        image = strokes.write(strokes.curves(form), generator, 28, 0.7, 0.1)
        assert image.shape == (28, 28)
        assert image.max() > 200
        y, x = ndimage.center_of_mass(image)
        assert (y, x) == pytest.approx((13.5, 13.5), abs=0.3)
        height, width = (np.ptp(np.flatnonzero(image.max(axis=axis) > 60)) + 1 for axis in (1, 0))
        assert max(height, width) == pytest.approx(0.7 * 28, abs=2)


def test_what_is_drawn_follows_from_the_generator():
    for draw in (strokes.draw_digits, strokes.draw_others):
        one, two = (draw(np.random.default_rng(1), 20, 28, 0.7, PENS) for _ in range(2))
        assert all(np.array_equal(*pair) for pair in zip(one, two, strict=True))
    images, labels = strokes.draw_digits(np.random.default_rng(1), 20, 28, 0.7, PENS)
    hurried, same = strokes.draw_digits(np.random.default_rng(1), 20, 28, 0.7, PENS, strokes.HURRIED)
    assert np.array_equal(same, labels)
    assert not np.array_equal(hurried, images)
    assert labels.tolist() == [*range(10), *range(10)]
    assert not np.array_equal(images[0], images[10])


def test_printed_characters_come_in_fonts_that_have_them():
    found = strokes.printed("4A", 40)
    fours = [image for character, image in found if character == "4"]
    assert len(fours) > 15
    assert len({image.tobytes() for image in fours}) > 15
    assert all(image.max() == 255 and image[0].max() == 0 for image in fours)


@pytest.fixture
def few(monkeypatch):
    """Fewer of what takes time to be brought into MNIST's form."""
    load = OptDigitsDataModule.load

    def load_few(self):
        found = load(self)
        return Collection(found.pixels[:60], found.labels[:60], found.digests[:60], found.names[:60])

    monkeypatch.setattr(OptDigitsDataModule, "load", load_few)
    monkeypatch.setattr("datamodules.digits.SIGNS", "A%")


@pytest.mark.slow
def test_collections_are_joined_and_outliers_are_trained_on_alone(mnist, tmp_path, few):  # noqa: F811
    semeion(mnist)
    data = set_up(DigitsDataModule(str(mnist), drawn=20, hurried=10, outliers=24, val_fraction=0.2))
    collection = data.train_set.collection
    kinds = {name.split("/")[0] for name in collection.names}
    assert kinds == {"mnist", "semeion", "optdigits", "drawn", "hurried", "printed", "none"}
    assert collection.pixels.shape[1:] == (1, 28, 28)
    assert (data.val_set.labels != OUTLIER).all()
    outliers = [row for row, name in enumerate(collection.names) if name.startswith("none/")]
    assert (collection.labels[outliers] == OUTLIER).all()
    assert set(outliers) <= set(data.train_set.rows.tolist())
    digests = [
        {image.tobytes() for image in collection.digests[subset.rows]} for subset in (data.train_set, data.val_set)
    ]
    assert not digests[0] & digests[1]  # copies of small collections are on one side
    data.save_split(tmp_path / "split.csv")
    again = set_up(
        DigitsDataModule(str(mnist), drawn=20, hurried=10, outliers=24, split_file=str(tmp_path / "split.csv"))
    )
    assert np.array_equal(again.val_set.rows, data.val_set.rows)
    assert torch.equal(again.val_set.batch([0, 5]).images, data.val_set.batch([0, 5]).images)
    assert len(set_up(DigitsDataModule(str(mnist), drawn=20, outliers=24), "test").test_set) == 20
    assert Path(mnist, "semeion.data").is_file()


@pytest.mark.parametrize("count", [0, 1])
def test_as_few_may_be_drawn_as_anyone_wants(count):
    generator = np.random.default_rng(0)
    assert strokes.draw_others(generator, count, 28, 0.7, np.array([0.1])).shape == (count, 28, 28)
    assert strokes.draw_blots(generator, count, 28).shape == (count, 28, 28)
    with pytest.raises(UserError, match="drawn, hurried and outliers must be at least 0, got 10000, 0 and -1"):
        DigitsDataModule(outliers=-1)


def test_what_is_replayed_is_split_as_the_digits_are():
    replayed = DigitsDataModule(split_seed=7, val_fraction=0.1).to_replay
    generator, count = np.random.default_rng(0), 20_000
    digests = generator.integers(0, 256, (count, 16), dtype=np.uint8)
    labels = np.arange(count) % 10
    others = np.arange(count - 2_000, count)  # of which there are copies, as of Semeion's
    every = np.concatenate([np.arange(count), *[others] * 5])
    here = split(labels[every], digests[every], 0.1, 7)[:count]
    there = split(labels[:-2_000], digests[:-2_000], replayed.val_fraction, replayed.split_seed)
    assert replayed.val_fraction < 0.1
    assert there.sum() == pytest.approx(18_000 / 15, abs=10)
    assert here[:-2_000][there].all()
