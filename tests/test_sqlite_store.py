"""What an index in a SQLite file has to withstand."""

import contextlib
import json
import sqlite3

import numpy as np
import pytest
from filelock import FileLock

from datamodules.errors import UserError
from retrieval.stores.base import MissingIndexError, migrate
from retrieval.stores.sqlite import SQLiteStore, lock_of
from tests.test_store import HEADER, VECTORS, fill, record


@pytest.fixture
def location(tmp_path):
    return tmp_path / "index.sqlite"


@pytest.fixture
def store(location):
    with SQLiteStore(location, HEADER) as store:
        yield store


def test_readers_work_while_a_writer_is_in_the_middle_of_a_batch(store, location):
    fill(store, 2)
    writer = sqlite3.connect(location, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM images")
    with SQLiteStore(location) as reader:
        assert len(reader.search(VECTORS[:1], 9, [()])[0]) == 2
    writer.close()


@pytest.mark.parametrize(
    "damage", ["gone", "garbage", "cut off", "of another revision", "a folder in its place", "a bit", "an id"]
)
def test_the_matrix_file_is_made_again_when_it_does_not_match(store, location, damage):
    fill(store)
    expected = store.search(VECTORS, 6, [()] * 6)
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
    elif damage in ("a bit", "an id"):
        place = content.index(VECTORS[2].tobytes()) + 3 if damage == "a bit" else len(content) - 150
        derived.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with SQLiteStore(location) as again:
        assert again.search(VECTORS, 6, [()] * 6) == expected


def test_the_matrix_file_is_left_alone_while_another_process_updates_the_index(store, location):
    derived = location.with_name(location.name + ".vectors")
    with FileLock(f"{location}.lock"):
        fill(store, 2)
        assert len(store.search(VECTORS[:1], 9, [()])[0]) == 2
        assert not derived.exists()
        store.compact()  # as the process does that updates it
        written = derived.stat().st_mtime_ns
        with SQLiteStore(location) as reader:
            fill(store, 6)
            assert len(reader.search(VECTORS[:1], 9, [()])[0]) == 6
        assert derived.stat().st_mtime_ns == written
    with SQLiteStore(location) as reader:
        assert len(reader.search(VECTORS[:1], 9, [()])[0]) == 6
    assert derived.stat().st_mtime_ns > written


def test_what_a_killed_process_has_left_of_the_matrix_file_goes(store, location):
    left = location.with_name(f".{location.name}.vectors.0123abcd.tmp")
    left.touch()
    fill(store)
    store.search(VECTORS, 6, [()] * 6)
    assert left.exists()  # it may be another reader's, who is at work
    fill(store, 5)
    store.compact()
    assert sorted(path.name for path in location.parent.iterdir() if "vectors" in path.name) == ["index.sqlite.vectors"]


def test_a_reader_during_an_update_has_the_common_file_once_the_update_is_complete(store, location):
    fill(store)
    derived = location.with_name(location.name + ".vectors")
    with SQLiteStore(location) as reader:
        with FileLock(lock_of(location)):
            reader.search(VECTORS, 6, [()] * 6)
            assert not derived.exists()
            assert reader._matrix is not None
            own = reader._matrix[2]
            reader.search(VECTORS, 6, [()] * 6)
            assert reader._matrix[2] is own
            store.compact()
        before = derived.stat().st_mtime_ns
        reader.search(VECTORS, 6, [()] * 6)
        assert reader._matrix[2] is not own
        assert derived.stat().st_mtime_ns == before


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
def test_a_damaged_vector_is_said_and_hides_no_image(store, location, value):
    fill(store)
    (name,) = (path for path, kept in store.records().items() if kept.digest == bytes([2] * 16))
    damaged = VECTORS[2].copy()
    damaged[0] = value
    with contextlib.closing(sqlite3.connect(location)) as other, other:
        other.execute("UPDATE contents SET vector = ? WHERE digest = ?", (damaged.tobytes(), bytes([2] * 16)))
        other.execute("UPDATE header SET value = 'another' WHERE key = 'revision'")
    with SQLiteStore(location) as again:
        for ask in (lambda: again.search(VECTORS, 6, [()] * 6), again.vectors):
            with pytest.raises(UserError, match=f"the vector of {name} is damaged.*: delete the index and index again"):
                ask()


def test_a_file_that_is_no_database_is_refused_and_left_alone(location):
    location.write_bytes(b"my holiday pictures" * 1000)
    for header in (None, HEADER):
        with pytest.raises(UserError, match="damaged, or not an index: delete it and index again"):
            SQLiteStore(location, header)
    assert location.read_bytes() == b"my holiday pictures" * 1000


def test_another_database_is_refused_and_left_alone(location):
    with sqlite3.connect(location) as other:
        other.execute("CREATE TABLE accounts (name)")
    for header in (None, HEADER):
        with pytest.raises(UserError, match="a database, but not an index of images"):
            SQLiteStore(location, header)


def test_an_index_of_a_newer_version_is_refused(store, location):
    store.close()
    with sqlite3.connect(location) as newer:
        newer.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match=r"newer version of digitdoodle \(index version 99, this one knows 2\)"):
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


def test_a_log_that_a_deleted_index_has_left_is_not_taken_for_that_of_a_new_one(store, location):
    fill(store)
    left = {
        path: path.read_bytes() for path in (location.with_name(f"{location.name}{end}") for end in ("-wal", "-shm"))
    }
    store.close()
    location.unlink()
    for path, content in left.items():
        path.write_bytes(content)
    with SQLiteStore(location, HEADER) as anew:
        assert anew.records() == {}
        fill(anew, 1)
        assert list(anew.records()) == ["a/0.png"]


def test_a_store_that_is_open_notices_that_its_file_is_another_one_or_gone(store, location):
    fill(store)
    location.unlink()
    for ask in (store.records, lambda: store.add([record(0)], {})):
        with pytest.raises(MissingIndexError, match="the index has been removed"):
            ask()
    with SQLiteStore(location, HEADER) as anew:
        fill(anew, 1)
        assert list(store.records()) == ["a/0.png"]
        store.add([record(0, "b.png")], {})
        assert list(anew.records()) == ["a/0.png", "b.png"]
    with SQLiteStore(location) as again:
        assert list(again.records()) == ["a/0.png", "b.png"]
    location.unlink()
    with SQLiteStore(location, {**HEADER, "encoder": "another"}):
        for _ in range(2):
            with pytest.raises(UserError, match="another encoder has created the index anew: start again"):
                store.records()


def test_a_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="can't be written there: name a file in another folder with --index"):
        SQLiteStore(tmp_path / "missing" / "index", HEADER)


def test_a_vector_goes_with_the_last_file_that_needs_it(store, location):
    fill(store, 2)
    store.add([record(1, "copy.png")], {})
    for path, left in (("a/1.png", 2), ("copy.png", 1)):
        store.remove([path])
        store.compact()
        with sqlite3.connect(location) as reader:
            assert reader.execute("SELECT count(*) FROM contents").fetchone() == (left,)


SCHEMA_1 = """
CREATE TABLE header (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE contents (digest BLOB PRIMARY KEY, width INT NOT NULL, height INT NOT NULL, vector BLOB NOT NULL) STRICT;
CREATE TABLE images (
    id INTEGER PRIMARY KEY, path TEXT UNIQUE NOT NULL, size INT NOT NULL, mtime_ns INT NOT NULL,
    digest BLOB REFERENCES contents, label TEXT, error TEXT
) STRICT;
CREATE INDEX images_by_digest ON images (digest);
INSERT INTO header VALUES ('encoder', 'resnet18'), ('weights', 'abc'), ('layer', 'layer3'),
    ('preprocessing', 'plain 224'), ('source', 'own.pth'), ('revision', '0A');
INSERT INTO contents VALUES (x'00000000000000000000000000000001', 8, 6, x'0000803F00000000');
INSERT INTO images VALUES (1, 'a/1.png', 5, 6, x'00000000000000000000000000000001', 'a', NULL);
PRAGMA application_id = 1145335663;
PRAGMA user_version = 1;
"""


@pytest.mark.parametrize("writable", [True, False])
def test_an_index_of_schema_1_opens(tmp_path, monkeypatch, writable):
    location = tmp_path / "old.sqlite"
    with contextlib.closing(sqlite3.connect(location)) as connection:
        connection.executescript(SCHEMA_1)
    if not writable:
        monkeypatch.setattr("os.access", lambda path, mode: False)
    for _ in range(2):
        with SQLiteStore(location) as store:
            assert "source" not in store.header
            arguments = {"name": "resnet18", "weights": "own.pth", "layer": "layer3", "preprocessing": "plain"}
            assert json.loads(store.header["built"]) == {"class": "ResNetEncoder", "arguments": arguments}
            assert store.header["weights"] == "abc"
            ((hit,),) = store.search(np.array([[1, 0]], np.float32), 1, [()])
            assert (hit.path, hit.distance) == ("a/1.png", 0)
    with contextlib.closing(sqlite3.connect(location)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == (2 if writable else 1)


def test_a_classifier_of_schema_1_is_known():
    header = {"encoder": "CustomCNN", "weights": "w", "layer": "features", "preprocessing": "plain 28", "source": "b"}
    assert json.loads(migrate(header)["built"]) == {"class": "ClassifierEncoder", "arguments": {"path": "b"}}
