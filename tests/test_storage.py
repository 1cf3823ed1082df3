"""An index whose vectors are kept as float16, by the real command line."""

import contextlib
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from datamodules.errors import UserError
from retrieval.cli import main
from retrieval.stores.location import parse_location
from retrieval.stores.sqlite import SQLiteStore
from retrieval.update import Updater
from tests.conftest import draw_photo
from tests.small_encoder import SmallEncoder

INDEXES = {"whole.sqlite": [], "half.sqlite": ["--storage", "float16"]}


@pytest.fixture(params=[[], ["--crops"]], ids=["whole images", "crops"])
def indexed(request, photos, resnet_weights, monkeypatch, capsys):
    """A current folder with ``photos/``, which is indexed twice: with float32 and with float16."""
    monkeypatch.chdir(photos.parent)
    encoder = ["--encoder", "resnet18", "--weights", str(resnet_weights), "--layer", "layer2"]
    for index, options in INDEXES.items():
        assert main(["index", "photos", *encoder, "--index", index, *options, *request.param]) == 0
    capsys.readouterr()
    return photos


def vectors(index):
    with SQLiteStore(Path(index)) as store:
        return store.vectors()[1]


def bytes_of_vectors(index):
    with contextlib.closing(sqlite3.connect(index)) as file:
        return file.execute("SELECT sum(length(vector)) FROM contents").fetchone()[0]


def test_the_vectors_take_half_the_room_and_find_the_same(indexed, capsys):
    found = {}
    for index in INDEXES:
        commands = (["query", "photos/sky/0.jpg", "--database", "photos", "-k", "6"], ["evaluate", "photos"])
        for name, command in zip(("query", "evaluate"), commands, strict=True):
            assert main([*command, "--index", index, "--json"]) == 0
            found[index, name] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    one, half = (found[index, "query"] for index in INDEXES)
    assert [row["path"] for row in one] == [row["path"] for row in half]
    np.testing.assert_allclose([row["distance"] for row in half], [row["distance"] for row in one], atol=1e-3)
    assert found["whole.sqlite", "evaluate"] == found["half.sqlite", "evaluate"]
    assert bytes_of_vectors("half.sqlite") == bytes_of_vectors("whole.sqlite") / 2
    np.testing.assert_allclose(np.linalg.norm(vectors("half.sqlite"), axis=1), 1, atol=1e-6)
    assert 0 < np.abs(vectors("half.sqlite") - vectors("whole.sqlite")).max() < 1e-3


def test_an_index_stays_as_it_is_and_its_file_for_others_is_as_any(indexed, capsys):
    draw_photo(2, 20).save(indexed / "sky" / "new.jpg", quality=95)
    for options in ([], ["--storage", "float16"]):
        assert main(["index", "photos", "--index", "half.sqlite", *options]) == 0
    assert "0 encoded, 0 known by content, 13 unchanged" in capsys.readouterr().out
    kept = vectors("half.sqlite")
    assert main(["export", "photos", "vectors.npz", "--index", "half.sqlite"]) == 0
    assert main(["import", "photos", "vectors.npz", "--index", "again.sqlite"]) == 0
    np.testing.assert_array_equal(np.load("vectors.npz")["vector"], kept)
    np.testing.assert_array_equal(vectors("again.sqlite"), kept)
    assert main(["index", "photos", "--index", "again.sqlite", "--storage", "float32"]) == 0


def test_a_damaged_vector_is_said(indexed, capsys):
    with contextlib.closing(sqlite3.connect("half.sqlite")) as file, file:
        vector = np.frombuffer(file.execute("SELECT vector FROM contents LIMIT 1").fetchone()[0], "<f2").copy()
        vector[np.argmax(vector)] *= 2
        file.execute("UPDATE contents SET vector = ? WHERE rowid = 1", (vector.tobytes(),))
        file.execute("UPDATE header SET value = 'another' WHERE key = 'revision'")
    assert main(["evaluate", "photos", "--index", "half.sqlite"]) == 1
    assert "is damaged: delete the index and index again" in capsys.readouterr().err


def test_storage_that_can_not_be_is_one_clear_line(indexed, capsys):
    for index, other in (("whole.sqlite", "float16"), ("half.sqlite", "float32")):
        assert main(["index", "photos", "--index", index, "--storage", other]) == 1
        assert capsys.readouterr().err == (
            f"error: {index} was made without --storage {other}: delete it, or name another place with --index\n"
        )
    location = parse_location("http://127.0.0.1:1/photos")
    with pytest.raises(UserError, match="--crops and --storage float16 are for files, not for Milvus"):
        Updater(indexed, SmallEncoder(), location, storage="float16").run()
