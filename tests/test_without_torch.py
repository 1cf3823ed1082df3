"""An exported network answers by onnxruntime: quickly, since without PyTorch, and as the network itself does."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_modules import exported as exported_module
from lightning_modules.checkpoint import load_network
from lightning_modules.cli import main as by_torch
from lightning_modules.commands import export, predict, read
from lightning_modules.embedded import EMBEDDED, READER
from lightning_modules.networks import LineReader
from lightning_modules.number_reading import read_picture
from tests.conftest import REPOSITORY, draw_digit, draw_photo
from tests.test_cli import fail, run
from tests.test_lines import sheet
from tests.test_normalizer import draw, paint

# What a user's `python -m lightning_modules COMMAND …` runs; it fails if it has imported what takes seconds.
QUICKLY = """
import sys
from lightning_modules.commands import run
status = run(sys.argv[1], sys.argv[2:])
slow = {"torch", "torchvision", "lightning", "torchmetrics", "timm", "jsonargparse"} & sys.modules.keys()
slow |= set() if "--figure" in sys.argv else {"matplotlib"} & sys.modules.keys()
sys.exit(f"imported {slow}" if slow else status)
"""


def quickly(*args):
    """What a command prints, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", QUICKLY, *args]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def home(tiny_runs, tmp_path_factory):
    """A folder with ``exported`` and ``compact``, of a tiny classifier; and ``pictures``."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tiny_runs.parent)
        for name, options in (("exported", []), ("compact", ["--compact"])):
            assert export.main(["runs/custom_cnn/version_0", str(home / name), *options]) == 0
    folder = home / "pictures"
    folder.mkdir()
    for digit in range(3):
        draw_digit(digit, 30).save(folder / f"as trained {digit}.png")
        paint(draw(digit, (320, 240), 150.0, 14)).convert("RGB").save(folder / f"on paper {digit}.png")
        draw_photo(digit, digit, (300, 200)).save(folder / f"photo {digit}.jpg")
    Image.new("RGB", (200, 200), "white").save(folder / "blank.png")
    several = Image.new("L", (400, 240))
    for place in (30, 170, 300):
        several.paste(Image.fromarray((255 * draw(2, (100, 240), 120.0, 12)).astype(np.uint8)), (place, 0))
    paint(np.asarray(several) / 255).convert("RGB").save(folder / "several.png")
    return home


@pytest.fixture
def pictures(home, tmp_path, monkeypatch):
    """The same folder, to do with as one likes, as the current one."""
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home" / "pictures"


def rows_of(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(path, other):
    """Two files of predictions are the same, but for rounding."""
    rows, others = rows_of(path), rows_of(other)
    assert len(rows) == len(others) > 0
    for one, two in zip(rows, others, strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            if value and name.startswith(("probability", "score")):
                assert float(two[name]) == pytest.approx(float(value), abs=1e-4)
            elif not name.startswith("label_"):  # the order of two that are as good as alike may differ
                assert two[name] == value


@pytest.mark.slow
@pytest.mark.parametrize("network", ["exported", "compact", "embedded"])
@pytest.mark.parametrize("options", [(), ("--normalize", "none", "--figure", "seen.png")], ids=["", "options"])
def test_predict_says_the_same_without_torch(pictures, capsys, network, options):
    images = ("--images", "pictures", "exported/../pictures/blank.png", *options)
    if network != "embedded":
        images = ("--ckpt_path", network, *images)
    printed = quickly("predict", *images, "--output", "quick.csv")
    if options:
        assert Image.open("seen.png").size[0] > 500
        Path("seen.png").unlink()
    assert printed == run(capsys, "predict", *images, "--output", "torch.csv", main=by_torch).replace("torch", "quick")
    assert_same("quick.csv", "torch.csv")
    if not options:
        reasons = {Path(row["path"]).stem: row["reason"] for row in rows_of("quick.csv")}
        assert reasons["blank"] == "nothing on it"
        assert reasons["several"].startswith("3 digits")
        assert reasons["as trained 1"] == "" or network == "embedded"


def test_images_that_come_first_need_no_option(pictures, capsys):
    blank = "pictures/blank.png"
    for options, network in (((), "embedded"), (("--ckpt_path", "exported", "--trainer.accelerator", "cpu"), "torch")):
        assert "2 images" in run(
            capsys, blank, "pictures/several.png", *options, "--output", network, main=predict.main
        )
        assert [row["path"] for row in rows_of(network)] == [blank, "pictures/several.png"]


def test_read_says_the_same_without_torch(pictures, capsys):
    shutil.copytree(READER, "reader")
    sheet([["204", "72", "1470"], ["4", "271"]]).save("sheet.png")
    model = load_network(READER, LineReader)
    expected = [number.to_dict() for number in read_picture(model, Image.open("sheet.png").convert("RGB"))]
    assert len(expected) == 5
    for reader in ((), ("--ckpt_path", "reader")):
        printed = quickly("read", "sheet.png", *reader, "--json").splitlines()
        for line, number in zip(printed, expected, strict=True):
            close = pytest.approx(number["confidence"], abs=1e-4)
            assert json.loads(line) == {"path": "sheet.png", **number, "confidence": close}
    found = [
        json.loads(line)["text"] for line in quickly("read", "sheet.png", "--pattern", r"\d{4}", "--json").splitlines()
    ]
    assert "1470" in found
    assert all(len(text) == 4 for text in found)
    quickly("read", "sheet.png", "--figure", "read.png")
    assert Image.open("read.png").size[0] > 500


def test_torch_answers_where_the_program_cannot(pictures, capsys, monkeypatch):
    quick = ("--ckpt_path", "exported", "--images", "pictures")
    run(capsys, *quick, "--output", "quick.csv", main=predict.main)
    Path("exported/model.onnx").write_bytes(b"no program")
    message = "error: exported/model.onnx: not an ONNX program, or cut off\n"
    assert fail(capsys, *quick, main=predict.main) == message
    run(capsys, *quick, "--trainer.accelerator", "cpu", "--output", "asked.csv", main=predict.main)
    config = json.loads(Path("exported/config.json").read_text())
    outputs = config.pop("outputs")
    Path("exported/config.json").write_text(json.dumps(config))  # as an earlier version wrote it
    run(capsys, *quick, "--output", "earlier.csv", main=predict.main)
    Path("exported/config.json").write_text(json.dumps({**config, "outputs": outputs}))
    monkeypatch.setattr(exported_module, "find_spec", lambda package: None)
    run(capsys, *quick, "--output", "missing.csv", main=predict.main)
    for other in ("asked.csv", "earlier.csv", "missing.csv"):
        assert_same("quick.csv", other)


def test_a_compact_program_takes_its_weights_from_their_file(pictures, capsys):
    assert {path.name for path in Path("compact").iterdir()} == {
        *("README.md", "config.json", "model.onnx", "model.safetensors")
    }
    assert 2 * Path("compact/model.onnx").stat().st_size < Path("exported/model.onnx").stat().st_size
    card = Path("compact/README.md").read_text()
    assert "| `model.onnx` |" in card
    assert "model.pt2" not in card
    for folder, networks in ((EMBEDDED, 1), (READER, len(load_network(READER, LineReader).head))):
        assert (folder / "model.onnx").stat().st_size < 20_000 * networks
    Path("compact/model.safetensors").unlink()
    message = "compact/model.onnx: not an ONNX program, or cut off"
    assert message in fail(capsys, "--ckpt_path", "compact", "--images", "pictures", main=predict.main)


@pytest.mark.parametrize(
    "args",
    [
        ["--images", "missing.png"],
        ["--images", "pictures", "--output", "no/such/folder.csv"],
        ["--images", "pictures", "--figure", "seen.txt"],
        ["--images", "pictures", "broken"],
        ["--images"],
        [],
        ["--images", "pictures", "--normalize", "perhaps"],
    ],
)
def test_mistakes_are_said_in_the_same_words(pictures, capsys, args):
    Path("broken").mkdir()
    Path("broken/0.png").write_bytes(b"")
    said = fail(capsys, "--ckpt_path", "exported", *args, main=predict.main)
    assert said == fail(capsys, "predict", "--ckpt_path", "exported", *args, main=by_torch)
    assert not list(Path().glob("*.csv"))


def test_each_kind_of_network_is_refused_where_the_other_is_meant(pictures, capsys):
    images = ("--images", "pictures")
    assert "a LineReader, for the command `read`" in fail(
        capsys, "--ckpt_path", str(READER), *images, main=predict.main
    )
    assert "where a LineReader is expected" in fail(capsys, "pictures", "--ckpt_path", "exported", main=read.main)
