"""What every index must keep and answer."""

import sqlite3
import threading

import numpy as np
import pytest

from datamodules.errors import UserError
from retrieval.sqlite_store import SQLiteStore
from retrieval.store import Hit, Record
from tests.test_search import unit_vectors

HEADER = {"encoder": "some", "weights": "w", "layer": "l", "preprocessing": "p", "source": "s"}
VECTORS = unit_vectors(6, 8)


def record(number, name=None, label="a"):
    return Record(name or f"a/{number}.png", 10 + number, 2**60 + number, bytes([number] * 16), label, 30, 20)


@pytest.fixture
def location(tmp_path):
    return tmp_path / "index.sqlite"


@pytest.fixture
def store(location):
    with SQLiteStore(location, HEADER) as store:
        yield store


def fill(store, count=6):
    store.add([record(n) for n in range(count)], {bytes([n] * 16): VECTORS[n] for n in range(count)})


def paths(hits):
    return [hit.path for hit in hits]


def test_what_is_added_is_there_and_stays_there(store, location):
    fill(store)
    with SQLiteStore(location) as again:
        assert again.header == HEADER
        assert again.records() == {f"a/{n}.png": record(n) for n in range(6)}
        records, matrix = again.vectors()
        assert records == [record(n) for n in range(6)]
        np.testing.assert_array_equal(matrix, VECTORS)


def test_search_finds_the_closest_first_and_leaves_a_content_out(store):
    fill(store)
    (hits,) = store.search(VECTORS[2:3], 3, [None])
    assert hits[0] == Hit("a/2.png", "a", 0.0)
    (others,) = store.search(VECTORS[2:3], 3, [bytes([2] * 16)])
    assert paths(others)[:2] == paths(hits)[1:]
    assert len(others) == 3


def test_many_queries_are_answered_each_without_its_own(store):
    fill(store)
    store.add([record(0, "a/copy.png")], {})
    found = store.search(VECTORS, 6, [bytes([n] * 16) for n in range(6)])
    assert [len(hits) for hits in found] == [5, 6, 6, 6, 6, 6]
    assert all(f"a/{n}.png" not in paths(hits) for n, hits in enumerate(found))


def test_copies_share_a_vector_and_come_in_the_order_of_their_paths(store):
    fill(store, 3)
    store.add([record(1, "a/0b.png"), record(1, "z.png", None)], {})
    (hits,) = store.search(VECTORS[1:2], 3, [None])
    assert hits == [Hit("a/0b.png", "a", 0), Hit("a/1.png", "a", 0), Hit("z.png", None, 0)]


def test_search_can_be_limited_to_a_label(store):
    fill(store, 3)
    store.add([record(4, "ü/4.png", "ü")], {bytes([4] * 16): VECTORS[4]})
    assert paths(store.search(VECTORS[:1], 5, [None], label="ü")[0]) == ["ü/4.png"]
    assert store.search(VECTORS[:1], 5, [None], label="none") == [[]]


def test_a_record_takes_the_place_of_the_earlier_one(store):
    fill(store, 2)
    store.add([record(5, "a/0.png")], {bytes([5] * 16): VECTORS[5]})
    assert store.records()["a/0.png"] == record(5, "a/0.png")
    assert paths(store.search(VECTORS[5:6], 1, [None])[0]) == ["a/0.png"]


def test_what_is_removed_is_not_found_and_its_vector_goes_with_the_last_copy(store):
    fill(store, 3)
    store.remove(["a/1.png", "never there"])
    assert sorted(store.records()) == ["a/0.png", "a/2.png"]
    assert len(store.search(VECTORS[1:2], 5, [None])[0]) == 2
    assert store.known([bytes([1] * 16)]) == {bytes([1] * 16): (30, 20)}  # for a file that was only moved
    store.prune()
    assert store.known([bytes([n] * 16) for n in range(4)]).keys() == {bytes(16), bytes([2] * 16)}


def test_files_that_are_no_images_are_remembered_but_not_found(store):
    fill(store, 1)
    broken = Record("broken\n.png", 5, 6, None, None, error="broken\n.png: cut off")
    store.add([broken], {})
    assert store.records()["broken\n.png"] == broken
    assert len(store.search(VECTORS[:1], 5, [None])[0]) == 1
    assert store.vectors()[0] == [record(0)]


@pytest.mark.parametrize("name", ["ünï/cødé 🙂.png", "a\nb.png", "'; DROP TABLE images; --.png", "\udcff.png"])
def test_any_file_name_can_be_kept(store, name):
    store.add([record(1, name)], {bytes([1] * 16): VECTORS[1]})
    assert list(store.records()) == [name]
    assert paths(store.search(VECTORS[:1], 1, [None])[0]) == [name]


def test_an_empty_index_finds_nothing(store):
    assert store.search(VECTORS[:2], 3, [None, None]) == [[], []]
    assert store.vectors()[0] == []


def test_a_reader_sees_what_a_writer_has_added_since(store, location):
    fill(store, 2)
    with SQLiteStore(location) as reader:
        assert len(reader.search(VECTORS[:1], 9, [None])[0]) == 2
        store.add([record(3)], {bytes([3] * 16): VECTORS[3]})
        assert len(reader.search(VECTORS[:1], 9, [None])[0]) == 3
        store.remove(["a/0.png"])
        assert paths(reader.search(VECTORS[:1], 1, [None])[0]) != ["a/0.png"]


def test_readers_work_while_a_writer_is_in_the_middle_of_a_batch(store, location):
    fill(store, 2)
    writer = sqlite3.connect(location, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM images")
    with SQLiteStore(location) as reader:
        assert len(reader.search(VECTORS[:1], 9, [None])[0]) == 2
    writer.close()


def test_two_writers_wait_for_each_other(location):
    def write(first):
        with SQLiteStore(location, HEADER) as store:
            for number in range(20):
                store.add([record(1, f"{first}/{number}.png")], {bytes([1] * 16): VECTORS[1]})

    SQLiteStore(location, HEADER).close()
    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with SQLiteStore(location) as store:
        assert len(store.records()) == 40


def test_threads_share_a_store(store):
    fill(store)
    found = []

    def search(number):
        found.append((number, store.search(VECTORS[number : number + 1], 1, [None])[0][0].path))

    threads = [threading.Thread(target=search, args=(n % 6,)) for n in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted((n % 6, f"a/{n % 6}.png") for n in range(30))


@pytest.mark.parametrize("damage", ["gone", "garbage", "cut off", "of another revision", "a folder in its place"])
def test_the_matrix_file_is_made_again_when_it_does_not_match(store, location, damage):
    fill(store)
    expected = store.search(VECTORS, 6, [None] * 6)
    derived = location.with_name(location.name + ".vectors")
    content = derived.read_bytes()
    derived.unlink()
    if damage == "garbage":
        derived.write_bytes(b"nonsense")
    elif damage == "cut off":
        derived.write_bytes(content[: len(content) // 2])
    elif damage == "of another revision":
        derived.write_bytes(content)
        store.add([record(0)], {})
    elif damage == "a folder in its place":
        derived.mkdir()
    with SQLiteStore(location) as again:
        assert again.search(VECTORS, 6, [None] * 6) == expected


def test_no_index_is_a_clear_error_and_makes_none(location):
    with pytest.raises(UserError, match=r"no index there; make one with `python -m retrieval index`"):
        SQLiteStore(location)
    assert not location.exists()


def test_a_file_that_is_no_database_is_refused_and_left_alone(location):
    location.write_bytes(b"my holiday pictures" * 1000)
    for header in (None, HEADER):
        with pytest.raises(UserError, match="damaged, or no index at all: delete it and index again"):
            SQLiteStore(location, header)
    assert location.read_bytes() == b"my holiday pictures" * 1000


def test_another_database_is_refused_and_left_alone(location):
    with sqlite3.connect(location) as other:
        other.execute("CREATE TABLE accounts (name)")
    for header in (None, HEADER):
        with pytest.raises(UserError, match="a database, but no index of images"):
            SQLiteStore(location, header)


def test_an_index_of_a_newer_version_is_refused(store, location):
    store.close()
    with sqlite3.connect(location) as newer:
        newer.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match=r"newer version of digitdoodle \(index version 99, this one knows 1\)"):
        SQLiteStore(location)


def test_an_index_that_is_cut_off_in_the_middle_is_refused(store, location):
    store.add([record(n % 250, f"{n}.png") for n in range(2000)], {})
    store.close()
    content = location.read_bytes()
    location.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged"), SQLiteStore(location) as cut:
        cut.records()


def test_an_index_on_a_full_disk_is_a_clear_error(store, tmp_path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, hard))
    try:
        with pytest.raises(UserError, match="make room, or name a file on another disk with --index"):
            store.add([record(1, f"{n}.png") for n in range(2000)], {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    store.add([record(2, "then.png")], {})
    assert "then.png" in store.records()


def test_a_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="can't be written there: name a file in another folder with --index"):
        SQLiteStore(tmp_path / "missing" / "index", HEADER)
