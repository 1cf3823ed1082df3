"""What every index must keep and answer, whatever the engine."""

import threading

import numpy as np
import pytest

from retrieval.stores.base import Hit, MissingIndexError, Record
from retrieval.stores.sqlite import SQLiteStore
from tests.test_search import unit_vectors

HEADER = {"encoder": "some", "weights": "w", "layer": "l", "preprocessing": "p", "built": "s"}
VECTORS = unit_vectors(6, 8)


def record(number, name=None, label="a"):
    return Record(name or f"a/{number}.png", 10 + number, 2**60 + number, bytes([number] * 16), label, 30, 20)


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("lite", marks=pytest.mark.milvus),
        pytest.param("server", marks=pytest.mark.server),
    ]
)
def opened(request, tmp_path):
    """Opens an index, the same one each time; with a header, makes it."""
    if request.param == "sqlite":
        return lambda header=None: SQLiteStore(tmp_path / "index.sqlite", header)
    from retrieval.stores.milvus import MilvusStore

    uri = str(tmp_path / "lite.db") if request.param == "lite" else request.getfixturevalue("milvus")
    # A new collection takes a server seconds: but for the test that wants none there, all share one.
    wants_none = request.function is test_no_index_is_a_clear_error_and_makes_none
    return lambda header=None: MilvusStore(uri, "missing" if wants_none else "tests", header, dimension=8)


@pytest.fixture
def store(opened):
    with opened(HEADER) as store:
        store.remove(store.records())
        yield store


def fill(store, count=6):
    store.add([record(n) for n in range(count)], {bytes([n] * 16): VECTORS[n] for n in range(count)})


def paths(hits):
    return [hit.path for hit in hits]


def test_what_is_added_is_there_and_stays_there(store, opened):
    fill(store)
    with opened() as again:
        assert again.header == HEADER
        assert again.records() == {f"a/{n}.png": record(n) for n in range(6)}
        records, matrix = again.vectors()
        assert records == [record(n) for n in range(6)]
        np.testing.assert_array_equal(matrix, VECTORS)


def test_search_finds_the_closest_first_and_leaves_a_content_out(store):
    fill(store)
    (hits,) = store.search(VECTORS[2:3], 3, [()])
    assert hits[0] == Hit("a/2.png", "a", 0.0)
    (others,) = store.search(VECTORS[2:3], 3, [{bytes([2] * 16)}])
    assert paths(others)[:2] == paths(hits)[1:]
    assert len(others) == 3


def test_many_queries_are_answered_each_without_its_own(store):
    fill(store)
    store.add([record(0, "a/copy.png")], {})
    found = store.search(VECTORS, 6, [{bytes([n] * 16)} for n in range(6)])
    assert [len(hits) for hits in found] == [5, 6, 6, 6, 6, 6]
    assert all(f"a/{n}.png" not in paths(hits) for n, hits in enumerate(found))


def test_copies_share_a_vector_and_come_in_the_order_of_their_paths(store):
    fill(store, 3)
    store.add([record(1, "a/0b.png"), record(1, "z.png", None)], {})
    (hits,) = store.search(VECTORS[1:2], 3, [()])
    assert hits == [Hit("a/0b.png", "a", 0), Hit("a/1.png", "a", 0), Hit("z.png", None, 0)]


def test_search_can_be_limited_to_a_label(store):
    fill(store, 3)
    store.add([record(4, "ü/4.png", "ü")], {bytes([4] * 16): VECTORS[4]})
    assert paths(store.search(VECTORS[:1], 5, [()], label="ü")[0]) == ["ü/4.png"]
    assert store.search(VECTORS[:1], 5, [()], label="none") == [[]]
    assert store.labels() == ["a", "ü"]
    store.add([Record("b/broken.png", 5, 6, None, "b", error="cut off")], {})
    assert [label for label in ("a", "ü", "b", "none", "") if store.has_label(label)] == ["a", "ü"]


def test_an_index_that_has_changed_has_another_revision(store, opened):
    revisions = set()
    for number in range(3):
        fill(store, number)
        store.keep_match_distance(0.5)
        with opened() as reader:
            assert reader.revision() == store.revision()
        revisions.add(store.revision())
    assert len(revisions) == 3


def test_a_sample_has_each_content_once(store):
    assert store.sample(5)[0] == []
    fill(store)
    store.add([record(1, "a/copy.png")], {})
    contents, vectors = store.sample(100)
    assert sorted(contents) == [bytes([n] * 16) for n in range(6)]
    np.testing.assert_array_equal(vectors, VECTORS[[content[0] for content in contents]])
    assert len(store.sample(4)[0]) <= 4


@pytest.mark.parametrize("first", [0x00, 0x60, 0xE0])
def test_a_sample_has_nothing_to_do_with_the_order_of_the_paths(store, first):
    fill(store, 0)
    contents = [bytes([first + number] * 16) for number in range(30)]
    store.add(
        [Record(f"{29 - n:02}.png", 1, 1, contents[n], None, 1, 1) for n in reversed(range(30))],
        {content: VECTORS[number % 6] for number, content in enumerate(contents)},
    )
    assert sorted(store.sample(5)[0]) == contents[:5]


def test_the_distance_of_a_match_is_kept_beside_the_header(store, opened):
    store.keep_match_distance(0.25)
    store.begin_update()
    with opened() as again:
        assert again.match_distance() == 0.25  # until there is another
        assert again.is_updating()
        assert again.header == HEADER
        store.keep_match_distance(float("inf"))
        assert again.match_distance() == float("inf")
        assert not again.is_updating()


def test_a_record_takes_the_place_of_the_earlier_one(store):
    fill(store, 2)
    store.add([record(5, "a/0.png")], {bytes([5] * 16): VECTORS[5]})
    assert store.records()["a/0.png"] == record(5, "a/0.png")
    assert paths(store.search(VECTORS[5:6], 1, [()])[0]) == ["a/0.png"]


def test_what_is_removed_is_not_found(store):
    fill(store, 3)
    store.remove(["a/1.png", "never there"])
    store.compact()
    assert sorted(store.records()) == ["a/0.png", "a/2.png"]
    assert len(store.search(VECTORS[1:2], 5, [()])[0]) == 2


def test_a_file_that_was_moved_or_copied_keeps_its_vector(store):
    fill(store, 3)
    store.add([record(1, "moved.png"), record(2, "copy.png")], {})
    store.remove(["a/1.png"])
    store.compact()
    records, matrix = store.vectors()
    assert [entry.path for entry in records] == ["a/0.png", "a/2.png", "copy.png", "moved.png"]
    np.testing.assert_array_equal(matrix, VECTORS[[0, 2, 2, 1]])


def test_many_copies_of_an_image_leave_room_for_others(store):
    fill(store, 3)
    store.add([record(1, f"copies/{n:03}.png") for n in range(100)], {})
    (hits,) = store.search(VECTORS[1:2], 3, [()])
    assert paths(hits) == ["a/1.png", "copies/000.png", "copies/001.png"]
    (others,) = store.search(VECTORS[1:2], 3, [{bytes([1] * 16)}])
    assert sorted(paths(others)) == ["a/0.png", "a/2.png"]


def test_files_that_are_no_images_are_remembered_but_not_found(store):
    fill(store, 1)
    broken = Record("broken\n.png", 5, 6, None, None, error="broken\n.png: cut off")
    store.add([broken], {})
    assert store.records()["broken\n.png"] == broken
    assert len(store.search(VECTORS[:1], 5, [()])[0]) == 1
    assert store.vectors()[0] == [record(0)]


@pytest.mark.parametrize("name", ["ünï/cødé 🙂.png", "a\nb.png", "'; DROP TABLE images; --.png", "\udcff.png"])
def test_any_file_name_can_be_kept(store, name):
    store.add([record(1, name)], {bytes([1] * 16): VECTORS[1]})
    assert list(store.records()) == [name]
    assert paths(store.search(VECTORS[:1], 1, [()])[0]) == [name]


def test_an_empty_index_finds_nothing(store):
    assert store.search(VECTORS[:2], 3, [(), ()]) == [[], []]
    assert store.vectors()[0] == []


def test_a_reader_sees_what_a_writer_has_added_since(store, opened):
    fill(store, 2)
    with opened() as reader:
        assert len(reader.search(VECTORS[:1], 9, [()])[0]) == 2
        store.add([record(3)], {bytes([3] * 16): VECTORS[3]})
        assert len(reader.search(VECTORS[:1], 9, [()])[0]) == 3
        store.remove(["a/0.png"])
        assert paths(reader.search(VECTORS[:1], 1, [()])[0]) != ["a/0.png"]


def test_threads_share_a_store(store):
    fill(store)
    found = []

    def search(number):
        found.append((number, store.search(VECTORS[number : number + 1], 1, [()])[0][0].path))

    threads = [threading.Thread(target=search, args=(n % 6,)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted((n % 6, f"a/{n % 6}.png") for n in range(30))


def test_no_index_is_a_clear_error_and_makes_none(opened):
    for _ in range(2):
        with pytest.raises(MissingIndexError, match=r"no index there; create one with `python -m retrieval index`"):
            opened()


def test_an_index_that_is_there_keeps_its_header(store, opened):
    with opened({**HEADER, "encoder": "another"}) as again:
        assert again.header == HEADER


def test_two_writers_do_not_get_into_each_others_way(store, opened):
    def write(first):
        with opened() as store:
            for number in range(10):
                store.add([record(1, f"{first}/{number}.png")], {bytes([1] * 16): VECTORS[1]})

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.records()) == 20
