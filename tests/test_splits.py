import numpy as np
import pytest

from datamodules.errors import UserError
from datamodules.splits import pixel_digests, read_split, split, write_split


def distinct(count, start=0):
    return pixel_digests(np.arange(start, start + count, dtype=np.uint32)[:, None].view(np.uint8))


def test_the_shares_are_those_of_the_whole_and_of_every_class():
    labels = np.repeat([0, 1, 2], [1501, 1702, 1455])
    in_validation = split(labels, distinct(len(labels)), 0.2, seed=42)
    assert in_validation.sum() == int(0.2 * 4658) == 931
    for label in range(3):
        assert in_validation[labels == label].mean() == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize(
    ("counts", "fraction", "total"),
    [
        ([80, 100], 0.35, 63),  # as floats 62.99999999999999 of all, but 28 and 35 of the classes
        ([50, 50], 0.29, 29),  # 28.999999999999996
        ([33, 33, 34], 0.2, 20),
    ],
)
def test_the_shares_sum_to_that_of_the_whole_whatever_floats_make_of_it(counts, fraction, total):
    labels = np.repeat(np.arange(len(counts)), counts)
    assert split(labels, distinct(len(labels)), fraction, seed=42).sum() == total


def test_the_same_seed_gives_the_same_split_and_another_one_another():
    labels, digests = np.arange(300) % 3, distinct(300)
    first = split(labels, digests, 0.2, seed=42)
    np.testing.assert_array_equal(first, split(labels, digests, 0.2, seed=42))
    assert (first != split(labels, digests, 0.2, seed=43)).any()


def test_a_known_split_stays_what_it_was():
    in_validation = split(np.arange(20) % 2, distinct(20), 0.2, seed=42)
    assert np.flatnonzero(in_validation).tolist() == [3, 8, 14, 17]


def test_the_order_of_the_images_does_not_matter():
    labels, digests = np.arange(300) % 3, distinct(300)
    order = np.random.default_rng(0).permutation(300)
    shuffled = split(labels[order], digests[order], 0.2, seed=42)
    np.testing.assert_array_equal(shuffled, split(labels, digests, 0.2, seed=42)[order])


def test_an_added_image_hardly_moves_the_others():
    labels, digests = np.arange(300) % 3, distinct(303)
    before = split(labels, digests[:300], 0.2, seed=42)
    after = split(np.arange(303) % 3, digests, 0.2, seed=42)
    assert (before != after[:300]).sum() <= 3


def test_copies_are_on_one_side_even_across_classes():
    content = np.random.default_rng(0).integers(0, 40, 400)
    labels = np.random.default_rng(1).integers(0, 2, 400)
    digests = distinct(40)[content]
    in_validation = split(labels, digests, 0.2, seed=42)
    for image in range(40):
        assert len(set(in_validation[content == image])) == 1
    assert 0.1 < in_validation.mean() < 0.35


def test_small_classes_have_an_image_on_each_side():
    labels = np.array([0] * 50 + [1] * 2)
    in_validation = split(labels, distinct(52), 0.2, seed=42)
    assert in_validation[labels == 1].sum() == 1


def test_a_written_split_is_read_back_in_any_order(tmp_path):
    names = ["a/1.png", "a/2, 3.png", 'b/"4".png', "b/ünï\n5.png"]
    labels = ["a", "a", "b", "b"]
    in_validation = np.array([True, False, False, True])
    write_split(tmp_path / "split.csv", names, labels, in_validation)
    assert (tmp_path / "split.csv").read_text(encoding="utf-8").startswith("file,label,subset\na/1.png,a,val\n")
    back = read_split(tmp_path / "split.csv", names[::-1], labels[::-1])
    np.testing.assert_array_equal(back, in_validation[::-1])
    written = (tmp_path / "split.csv").read_text(encoding="utf-8")
    (tmp_path / "split.csv").write_text(written, encoding="utf-8-sig")  # as a spreadsheet writes it
    np.testing.assert_array_equal(read_split(tmp_path / "split.csv", names, labels), in_validation)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("name,subset\n", "columns file, label, subset"),
        ("file,label,subset\nother.png,a,val\n", r"says nothing of x\.png"),
        ("file,label,subset\nx.png,b,val\n", r"calls x\.png a b, but it lies in a"),
        ("file,label,subset\nx.png,a,test\n", "subset of x.png is 'test'"),
    ],
)
def test_a_split_file_that_does_not_fit_is_a_clear_error(tmp_path, text, message):
    path = tmp_path / "split.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_split(path, ["x.png"], ["a"])
