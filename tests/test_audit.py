"""What evaluation and audit say, on vectors whose answer is known."""

import numpy as np
import pytest

from datamodules.errors import UserError
from retrieval.audit import audit, near_duplicate_threshold
from retrieval.evaluation import rank_queries, summarise
from retrieval.stores.base import Record


def on_a_circle(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def records_of(*labels, contents=None):
    contents = contents or range(len(labels))
    return [
        Record(f"{label or ''}{row}.png", 1, 1, bytes([content]), label)
        for row, (label, content) in enumerate(zip(labels, contents, strict=True))
    ]


def test_precision_and_average_precision_are_those_of_the_definition():
    rankings = rank_queries(records_of("a", "b", "a", "b", "a"), on_a_circle(0, 10, 25, 45, 70))
    # From 0°: b, a, b, a: precisions at the two relevant ones are 1/2 and 2/4.
    assert rankings[0].average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert rankings[0].precision == {1: 0, 4: pytest.approx(2 / 4), 10: pytest.approx(2 / 4)}
    # From 70°: b (45°), a (25°), b (10°), a (0°).
    assert rankings[4].average_precision == pytest.approx((1 / 2 + 2 / 4) / 2)
    table = summarise(rankings)
    assert table["all"]["queries"] == 5
    assert table["all"]["mAP"] == pytest.approx(np.mean([r.average_precision for r in rankings]))
    assert table["a"]["queries"] == 3


def test_copies_of_a_query_do_not_count_as_found():
    rankings = rank_queries(records_of("a", "a", "b", "a", contents=(0, 0, 1, 2)), on_a_circle(0, 0, 10, 30))
    assert rankings[0].precision[1] == 0
    assert rankings[0].average_precision == pytest.approx(1 / 2)


def test_queries_without_another_image_of_their_class_are_left_out():
    rankings = rank_queries(records_of("a", "a", "b", None), on_a_circle(0, 5, 10, 20))
    assert [ranking.label for ranking in rankings] == ["a", "a"]


@pytest.mark.parametrize(("labels", "message"), [("aaa", "two or more class folders"), ("abc", "two different images")])
def test_what_cannot_be_evaluated_is_a_clear_error(labels, message):
    with pytest.raises(UserError, match=message):
        rank_queries(records_of(*labels), on_a_circle(0, 1, 2))


def test_a_label_that_all_neighbours_contradict_is_doubted():
    labels = ["a"] * 12 + ["b"] * 12
    labels[3] = "b"
    vectors = on_a_circle(*range(0, 24, 2), *range(100, 124, 2))
    findings, _ = audit(records_of(*labels), vectors)
    assert [(found.kind, found.path, found.label, found.other_label) for found in findings] == [
        ("label", "b3.png", "b", "a")
    ]


def test_near_duplicates_are_told_from_neighbours_by_the_data():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(300, 20))
    vectors[1] = vectors[0] + generator.normal(size=20) * 0.01
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    findings, threshold = audit(records_of(*[None] * 200), vectors[:200])
    assert [(found.kind, found.path, found.other) for found in findings] == [("near-duplicate", "0.png", "1.png")]
    assert 0.02 < threshold < 0.9


def test_a_pair_across_the_split_is_a_leak():
    vectors = on_a_circle(0, 0, 40, 40.001, 90)
    records = records_of(*"aabbb", contents=(0, 0, 1, 2, 3))
    subsets = {"a0.png": "train", "a1.png": "val", "b2.png": "train", "b3.png": "train", "b4.png": "val"}
    findings, _ = audit(records, vectors, subsets, threshold=0.01)
    assert [(found.kind, found.path, found.other) for found in findings] == [
        ("leak", "a0.png", "a1.png"),
        ("near-duplicate", "b2.png", "b3.png"),
    ]


def test_small_collections_can_be_audited():
    assert audit([], np.empty((0, 0), np.float32)) == ([], 0.0)
    assert audit(records_of("a"), on_a_circle(0)) == ([], 0.0)


@pytest.mark.parametrize("copied", [12, 30, 60])
def test_copies_are_found_however_many_images_have_one(copied):
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((60, 64))
    copies = vectors[:copied] + 0.1 * generator.standard_normal((copied, 64))
    every = np.concatenate([vectors, copies])
    every = (every / np.linalg.norm(every, axis=1, keepdims=True)).astype(np.float32)
    findings, _ = audit(records_of(*[None] * len(every)), every)
    assert {(found.path, found.other) for found in findings} == {(f"{n}.png", f"{60 + n}.png") for n in range(copied)}
    assert {found.kind for found in findings} == {"near-duplicate"}


def test_images_that_are_all_alike_are_no_copies_of_each_other():
    generator = np.random.default_rng(0)
    photos = generator.standard_normal((100, 64))
    pages = generator.standard_normal(64) + 0.15 * generator.standard_normal((30, 64))
    every = np.concatenate([photos, pages])
    every = (every / np.linalg.norm(every, axis=1, keepdims=True)).astype(np.float32)
    findings, threshold = audit(records_of(*[None] * len(every)), every)
    assert findings == []
    assert audit(records_of(*[None] * len(every)), every, threshold=threshold)[0]  # who names a threshold gets them


def test_the_threshold_lies_below_the_neighbours_distances():
    distances = np.exp(np.random.default_rng(0).normal(-1, 0.3, 10_000)).astype(np.float32)
    assert (distances < near_duplicate_threshold(distances)).mean() < 0.001


def test_a_copy_on_no_side_of_a_split_hides_no_leak():
    records = records_of("a", "b", "c", "d", contents=(0, 0, 0, 1))
    subsets = {"b1.png": "train", "c2.png": "val", "d3.png": "val"}
    findings, _ = audit(records, on_a_circle(0, 0, 0, 1), subsets, threshold=0.1)
    assert [(found.kind, found.path, found.other) for found in findings] == [
        ("leak", "b1.png", "c2.png"),
        ("leak", "b1.png", "d3.png"),
        ("duplicate", "b1.png", "a0.png"),
    ]
