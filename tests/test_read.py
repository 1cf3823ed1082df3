"""``read`` finds the numbers on a picture, by the reader that comes with the package, and writes them in order."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.reading import draw_sheet
from datamodules.images import read_image
from datamodules.ink import SIDE
from lightning_modules.checkpoint import load_network
from lightning_modules.commands import read
from lightning_modules.ctc import sign_accuracy
from lightning_modules.embedded import READER
from lightning_modules.networks import LineReader
from lightning_modules.number_reading import Number, mark_numbers, read_picture
from tests.conftest import draw_photo
from tests.test_cli import fail, run
from tests.test_lines import sheet


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A sheet of numbers, a blank and a photograph."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    sheet([["204", "72", "1470"], ["4", "271"]]).save(folder / "1 sheet.png")
    Image.new("RGB", (300, 200), "white").save(folder / "2 blank.png")
    draw_photo(1, 3).resize((640, 480)).save(folder / "3 photo.jpg")
    return folder


def test_numbers_are_read_in_order_and_written_with_their_places(pictures, capsys):
    assert read.main(["pictures", "--output", "read.csv", "--figure", "read.png"]) == 0
    captured = capsys.readouterr()
    with Path("read.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "row", "text", "confidence", "left", "top", "width", "height"]
    assert {row["path"] for row in rows} == {"pictures/1 sheet.png"}
    assert [row["row"] for row in rows] == ["1", "1", "1", "2", "2"]
    right = sum(row["text"] == text for row, text in zip(rows, ["204", "72", "1470", "4", "271"], strict=True))
    assert right >= 4
    assert int(rows[0]["left"]) < int(rows[1]["left"]) < int(rows[2]["left"])
    assert int(rows[3]["top"]) > int(rows[0]["top"]) + int(rows[0]["height"])
    assert all(0 <= float(row["confidence"]) <= 1 for row in rows)
    lines = captured.out.splitlines()
    assert [line.split("  ")[:3] for line in lines] == [[row["path"], row["row"], row["text"]] for row in rows]
    assert captured.err.splitlines()[-2:] == [
        "pictures/2 blank.png: no number found",
        "pictures/3 photo.jpg: no number found",
    ]
    assert Image.open("read.png").size[0] > 800


def test_json_has_the_same_names_and_the_same_numbers(pictures, capsys):
    run(capsys, "pictures/1 sheet.png", "--output", "read.csv", main=read.main)
    with Path("read.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    printed = [json.loads(line) for line in run(capsys, "pictures/1 sheet.png", "--json", main=read.main).splitlines()]
    assert [{name: str(value) for name, value in row.items()} for row in printed] == rows


def test_places_are_in_the_files_pixels_and_drawn_where_they_are(pictures, capsys):
    small = sheet([["204", "72", "1470"], ["4", "271"]])
    exif = Image.Exif()
    exif[0x0112] = 6
    large = small.resize((3 * small.width, 3 * small.height), Image.Resampling.BICUBIC)
    large.transpose(Image.Transpose.ROTATE_90).save("large.jpg", exif=exif)  # decoded at the half of its size
    expected, found = (
        [json.loads(line) for line in run(capsys, path, "--json", main=read.main).splitlines()]
        for path in ("pictures/1 sheet.png", "large.jpg")
    )
    assert [number["row"] for number in found] == [number["row"] for number in expected]
    for name in ("left", "top", "width", "height"):
        places, threefold = ([number[name] for number in numbers] for numbers in (found, expected))
        assert np.allclose(places, 3 * np.array(threefold), atol=20), name
    picture = read_image(Path("large.jpg"), 3, SIDE)
    assert picture.size == (2100, 1500)
    (file,) = read.read_pictures(load_network(READER, LineReader), [Path("large.jpg")])
    drawn = np.asarray(mark_numbers(picture, read_picture(load_network(READER, LineReader), picture)))
    (shown,) = read.plot_numbers([file]).axes[0].images
    expected = Image.fromarray(drawn).resize(shown.get_array().shape[1::-1])
    assert np.abs(np.asarray(expected, int) - np.asarray(shown.get_array(), int)).mean() < 1


def test_what_is_drawn_in_a_figure_is_no_larger_than_can_be_seen(pictures):
    small = sheet([["204", "72", "1470"], ["4", "271"]])
    small.resize((3 * small.width, 3 * small.height)).save("large.png")
    (file,) = read.read_pictures(load_network(READER, LineReader), [Path("large.png")])
    assert file.numbers
    (shown,) = read.plot_numbers([file]).axes[0].images
    assert shown.get_array().shape[:2] == (1143, 1600)


def test_a_pattern_says_what_each_number_is_to_be(pictures, capsys):
    printed = run(capsys, "pictures/1 sheet.png", "--pattern", r"\d{3}", "--json", main=read.main)
    texts = [json.loads(line)["text"] for line in printed.splitlines()]
    assert texts
    assert all(len(text) == 3 for text in texts)
    assert texts[0] == "204"


def test_what_is_doubtful_is_marked_and_not_hidden():
    picture = Image.new("RGB", (200, 80), "white")
    sure, doubtful = (Number("17", confidence, (20, 30, 60, 60), 0) for confidence in (0.9, 0.3))
    assert "doubtful" not in read.describe(read.FileNumbers(Path("a.png"), [sure], picture.size))[0]
    assert read.describe(read.FileNumbers(Path("a.png"), [doubtful], picture.size)) == ["a.png  1  17  30%  doubtful"]
    marked = [np.asarray(mark_numbers(picture, [number]))[30, 40].tolist() for number in (sure, doubtful)]
    assert marked[0][1] > marked[0][0]  # green
    assert marked[1][0] > marked[1][1]  # red
    assert np.asarray(picture).min() == 255  # the picture itself stays as it is


def test_what_is_said_of_a_number_does_not_cover_it():
    picture = Image.new("RGB", (160, 32), "white")
    marked = mark_numbers(picture, [Number("17", 0.9, (10, 2, 60, 30), 0)])
    assert marked.width == 160
    inside = np.asarray(marked)[-32:][4:28, 14:58]
    assert inside.min() == 255
    assert np.asarray(marked)[: marked.height - 32].min() < 255


def test_what_is_said_of_a_number_at_the_edge_is_whole():
    picture = Image.new("RGB", (160, 80), "white")
    inside, edge = (mark_numbers(picture, [Number("12345", 0.3, (left, 40, 158, 60), 0)]) for left in (20, 140))
    labels = [(np.asarray(marked)[:40] != 255).any(axis=2) for marked in (inside, edge)]
    assert labels[0].sum() == labels[1].sum() > 300


@pytest.mark.parametrize("ruled", [False, True])
def test_a_photographed_sheet_is_found_whole_and_in_order(ruled):
    shape = [["123", "45", "678", "9", "12"]] * 3 if ruled else [["1"] * 10] * 6
    picture, texts = draw_sheet(shape, ruled, size=(4000, 3000))
    numbers = read_picture(load_network(READER, LineReader), picture)
    found = [f"{number.row}:{number.text}" for number in numbers]
    expected = [f"{row}:{text}" for row, line in enumerate(texts) for text in line]
    assert sign_accuracy([found], [expected]) >= 0.75
    boxes = [number.box for number in numbers]
    for before, after in itertools.pairwise(boxes):  # to the right, or further down
        assert after[0] > before[2] or after[1] > before[1]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("size", [(1, 1), (3, 400), (8, 8)])
def test_pictures_of_any_size_are_read(size):
    model = load_network(READER, LineReader)
    assert read_picture(model, Image.new("RGB", size, "white")) == []
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    read_picture(model, Image.fromarray(pixels))


def test_bad_input_is_one_line_and_nothing_is_written(pictures, capsys):
    assert fail(capsys, "missing.png", main=read.main) == "error: missing.png: no such file or folder\n"
    assert "not a regular expression" in fail(capsys, "pictures", "--pattern", "(", main=read.main)
    (pictures / "0 broken.png").write_bytes(b"no image")
    (pictures / "4 empty.png").write_bytes(b"")
    text = fail(capsys, "pictures", "--output", "read.csv", "--figure", "read.png", main=read.main)
    assert text.startswith("error: 2 of 5 images can't be read, so nothing is written; repair them or leave them out:")
    assert "0 broken.png" in text
    assert "4 empty.png: empty file" in text
    assert not Path("read.csv").exists()
    assert not Path("read.png").exists()
    assert "not a picture format" in fail(capsys, "pictures", "--figure", "read.txt", main=read.main)
    Path("nothing").mkdir()
    assert "nothing: no images in this folder" in fail(capsys, "nothing", main=read.main)


def test_the_reader_that_comes_with_the_package_is_small_and_has_its_card():
    files = {path.name: path.stat().st_size for path in READER.iterdir()}
    assert set(files) == {"model.safetensors", "model.onnx", "config.json", "README.md"}
    assert sum(files.values()) < 3_000_000
    model = load_network(READER, LineReader)
    assert model.class_names == [str(digit) for digit in range(10)]


def test_real_amounts_are_read(shared):
    folder = shared / "data" / "handwriting" / "strings"
    with (folder / "strings.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::20]
    model = load_network(READER, LineReader)
    texts = [
        [number.text for number in read_picture(model, Image.open(folder / row["file"]).convert("RGB"))] for row in rows
    ]
    assert sum(text == [row["digits"]] for text, row in zip(texts, rows, strict=True)) > 0.5 * len(rows)
