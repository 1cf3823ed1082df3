"""An index as a file for other programs, and back, by the real command line."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.cli import main
from retrieval.stores.location import find_location
from tests.conftest import draw_photo

KINDS = ("vectors.npz", "vectors.parquet")


@pytest.fixture
def indexed(photos, resnet_weights, monkeypatch, capsys):
    """A current folder with ``photos/``, which is indexed; one image has a copy, one lies in no class folder."""
    monkeypatch.chdir(photos.parent)
    draw_photo(0, 0).save("photos/sky/copy ü.jpg", quality=95)
    draw_photo(1, 9).save("photos/alone.jpg", quality=95)
    command = ["index", "photos", "--encoder", "resnet18", "--weights", str(resnet_weights), "--layer", "layer2"]
    assert main(command) == 0
    capsys.readouterr()
    return photos


def contents(index=None):
    with find_location(Path("photos"), index).open() as store:
        return dict(store.header), *store.vectors()


def failure(capsys, *args):
    assert main(list(args)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize("name", KINDS)
def test_an_index_comes_back_as_it_was(indexed, capsys, name):
    assert main(["export", "photos", name]) == 0
    assert capsys.readouterr().err == f"written: {name}, 14 images\n"
    assert main(["import", "photos", name, "--index", "again.sqlite"]) == 0
    assert capsys.readouterr().out.startswith("again.sqlite: 14 images")
    (header, records, vectors), (again, same, copied) = contents(), contents("again.sqlite")
    assert (again, same) == (header, records)
    np.testing.assert_array_equal(copied, vectors)
    assert main(["index", "photos", "--index", "again.sqlite"]) == 0
    assert "0 encoded, 0 known by content, 14 unchanged" in capsys.readouterr().out


def test_other_programs_read_it(indexed, capsys):
    _, records, vectors = contents()
    for name in KINDS:
        assert main(["export", "photos", name]) == 0
    file, table = np.load("vectors.npz"), pq.read_table("vectors.parquet")
    np.testing.assert_array_equal(file["vector"], vectors)
    assert (file["vector"].dtype, file["vector"].shape) == (np.float32, (14, 128))
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), vectors)
    for column, values in (("path", [r.path for r in records]), ("label", [r.label or "" for r in records])):
        assert file[column].tolist() == table[column].to_pylist() == values
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 128)


@pytest.mark.parametrize("name", KINDS)
def test_an_empty_index_comes_back(indexed, capsys, name):
    with find_location(Path("photos"), None).open() as store:
        store.remove(store.records())
    assert main(["export", "photos", name]) == 0
    assert main(["import", "photos", name, "--index", "again.sqlite"]) == 0
    assert contents("again.sqlite")[1] == []


def test_an_empty_index_takes_no_vectors_of_another_encoder(indexed, resnet_weights, capsys):
    command = ["index", "photos", "--encoder", "resnet18", "--weights", str(resnet_weights), "--index"]
    for index, options, said in (
        ("layer.sqlite", ["--layer", "layer3"], "layer layer3, not layer2"),
        ("crops.sqlite", ["--layer", "layer2", "--crops"], "crops 5, not None"),
        ("half.sqlite", ["--layer", "layer2", "--storage", "float16"], None),
    ):
        assert main([*command, index, *options]) == 0
        with find_location(Path("photos"), index).open() as store:
            store.remove(store.records())
        assert main(["export", "photos", KINDS[0]]) == 0
        capsys.readouterr()
        if said is None:
            assert main(["import", "photos", KINDS[0], "--index", index]) == 0
            assert len(contents(index)[1]) == 14
        else:
            err = failure(capsys, "import", "photos", KINDS[0], "--index", index)
            assert f"error: {index}: an empty index, made with {said}" in err
            assert contents(index)[1] == []


def test_a_name_that_is_no_text_goes_to_numpy_alone(indexed, capsys):
    odd = Path("photos/sky/caf\udce9.jpg")
    draw_photo(0, 7).save(odd)
    assert main(["index", "photos"]) == 0
    capsys.readouterr()
    assert "a file's name is not UTF-8, which Parquet can't hold" in failure(capsys, "export", "photos", KINDS[1])
    assert not Path(KINDS[1]).exists()
    assert main(["export", "photos", KINDS[0]]) == 0
    assert main(["import", "photos", KINDS[0], "--index", "again.sqlite"]) == 0
    assert "sky/caf\udce9.jpg" in [record.path for record in contents("again.sqlite")[1]]


def test_what_can_not_be_is_one_clear_line(indexed, capsys):
    for name in KINDS:
        assert main(["export", "photos", name]) == 0
        capsys.readouterr()
        assert "there is an index already; name another place" in failure(capsys, "import", "photos", name)
        Path(f"half_{name}").write_bytes(Path(name).read_bytes()[:2000])
        assert "not an index that `python -m retrieval export` wrote, or damaged" in failure(
            capsys, "import", "photos", f"half_{name}", "--index", "again.sqlite"
        )
    assert "name a file that ends in .npz (NumPy) or .parquet" in failure(capsys, "export", "photos", "vectors.csv")
    for command in ("import", "export"):
        assert "nowhere: no such folder" in failure(capsys, command, "nowhere", KINDS[0])
    assert "none.npz: no such file" in failure(capsys, "import", "photos", "none.npz", "--index", "again.sqlite")
    Path("other").mkdir()
    assert "other has no index yet" in failure(capsys, "export", "other", KINDS[0])
    command = "`python -m retrieval index photos --index none.sqlite`"
    err = failure(capsys, "export", "photos", KINDS[0], "--index", "none.sqlite")
    assert err == f"error: photos has no index in none.sqlite yet; create it with {command}\n"
    Path("empty.npz").touch()
    assert "not an index" in failure(capsys, "import", "photos", "empty.npz", "--index", "again.sqlite")
    table = pq.read_table(KINDS[1])
    lists = pa.array(table["vector"].to_pylist(), pa.list_(pa.float32()))  # as other programs write them
    place = table.schema.get_field_index("vector")
    pq.write_table(table.set_column(place, "vector", lists), "lists.parquet")
    assert "not an index" in failure(capsys, "import", "photos", "lists.parquet", "--index", "again.sqlite")
    columns = dict(np.load(KINDS[0]))
    np.savez("bad.npz", **{**columns, "vector": columns["vector"] * np.float32(2)})
    assert "the vector of alone.jpg is damaged" in failure(
        capsys, "import", "photos", "bad.npz", "--index", "again.sqlite"
    )
    np.savez("code.npz", **{**columns, "path": np.array([{}] * 14, object)})
    assert "not an index" in failure(capsys, "import", "photos", "code.npz", "--index", "again.sqlite")
    np.savez("other.npz", **{**columns, "digitdoodle": np.array(json.dumps({}))})
    assert "not an index" in failure(capsys, "import", "photos", "other.npz", "--index", "again.sqlite")
    assert not Path("again.sqlite").exists()
