"""Files are written whole or not at all, and called what the user calls them."""

import errno

import pytest

from datamodules.text import short_name
from datamodules.writing import atomic_write


@pytest.mark.parametrize(
    ("name", "number"), [("no/x.csv", errno.ENOENT), ("file/x.csv", errno.ENOTDIR), ("folder", errno.EISDIR)]
)
def test_what_cannot_be_written_is_named_as_the_user_named_it(tmp_path, name, number):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError, match=name) as caught, atomic_write(tmp_path / name) as file:
        file.write(b"half")
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / name))
    assert sorted(tmp_path.rglob("*")) == before


def test_what_fails_half_way_leaves_what_was_there(tmp_path):
    def write_half():
        with atomic_write(tmp_path / "x.csv", "w") as file:
            file.write("half")
            raise ZeroDivisionError

    (tmp_path / "x.csv").write_text("before")
    with pytest.raises(ZeroDivisionError):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
    assert (tmp_path / "x.csv").read_text() == "before"


@pytest.mark.parametrize(
    ("name", "shown"), [("a\nb.png", "a�b.png"), ("caf\udce9.png", "caf�.png"), ("0123456789.png", "…56789.png")]
)
def test_names_are_short_and_printable(name, shown):
    assert short_name(name, 10) == shown
