"""A reader is trained, scored, exported and refused where a classifier is meant; what CTC says is what it should."""

import csv
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from lightning import Trainer
from PIL import Image

from datamodules import ImageFolderDataModule, MNISTDataModule
from datamodules.errors import UserError
from datamodules.lines import crop_line
from datamodules.strings import StringsDataModule, read_lines
from lightning_modules.checkpoint import load_network
from lightning_modules.commands import export, read
from lightning_modules.ctc import (
    SignAccuracy,
    TextAccuracy,
    alignment_losses,
    ctc_losses,
    read_best_paths,
    read_texts,
    sign_accuracy,
)
from lightning_modules.ctc_decoding import match_text, text_probability
from lightning_modules.networks import LineReader
from lightning_modules.reading import read_dataset
from lightning_modules.run import Run
from tests.conftest import draw_digit, draw_digits, train_in
from tests.test_cli import best, fail, run

HIGH = ("--data.image_size", "32")
DIGITS = ("--data.digits", "ImageFolderDataModule", "--data.digits.root", "digits", "--data.digits.image_size", "28")
FIT = (
    *("--model", "LineReader", "--model.width", "4", "--data", "StringsDataModule", *DIGITS),
    *("--data.digits.classes", '["0_digits", "1_digits", "2_digits"]', "--data.composed", "128"),
    *("--data.val_composed", "24", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--name", "tiny"),
)


def brute_force(outputs, text):
    """The probability of a text: the sum over all columns' signs that read as it."""
    shares = outputs.double().softmax(dim=1)
    total = 0.0
    for path in itertools.product(range(shares.shape[1]), repeat=len(shares)):
        read_as = [label - 1 for label, _ in itertools.groupby(path) if label]
        if read_as == text:
            total += float(torch.stack([shares[column, label] for column, label in enumerate(path)]).prod())
    return total


def test_confidence_is_the_probability_of_all_ways_to_read_a_text():
    outputs = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0))
    texts = [[0, 1], [1, 1], []]
    labels = torch.tensor([[0, 1], [1, 1], [-1, -1]])
    expected = [brute_force(*pair) for pair in zip(outputs, texts, strict=True)]
    columns = outputs.softmax(dim=2).numpy()
    found = [text_probability(*pair) for pair in zip(columns, texts, strict=True)]
    assert found == pytest.approx(expected, rel=1e-4)
    assert (-ctc_losses(outputs, labels)).exp().tolist() == pytest.approx(expected, rel=1e-4)
    assert len(ctc_losses(outputs[:0], labels[:0])) == 0


def test_a_sign_is_best_read_where_it_stands():
    labels, middles = torch.tensor([[2, 0], [1, -1]]), torch.tensor([[0.2, 0.7], [0.5, math.nan]])
    right = torch.full((2, 10, 4), -10.0)
    right[:, :, 0] = 0
    for line, column, sign in ((0, 2, 3), (0, 7, 1), (1, 5, 2)):
        right[line, column] = torch.eye(4)[sign] * 20
    assert (alignment_losses(right, labels, middles) < 0.01).all()
    beside = right.clone()  # what the columns next to a sign say doesn't matter
    beside[0, [1, 3, 6, 8]] = torch.eye(4)[3] * 20
    assert torch.equal(alignment_losses(beside, labels, middles), alignment_losses(right, labels, middles))
    assert alignment_losses(right.roll(2, dims=1), labels, middles).min() > 10
    unknown = torch.full_like(middles, math.nan)
    assert alignment_losses(right, labels, unknown).tolist() == [0, 0]
    empty = alignment_losses(right, torch.full_like(labels, -1), unknown)
    assert (empty > 1).all()  # where no sign stands, it is known that there is none


def test_a_text_is_read_without_repetitions_and_blanks():
    columns = [0, 1, 1, 0, 1, 2, 2, 0, 0, 3]
    outputs = torch.nn.functional.one_hot(torch.tensor([columns, [0] * 10]), 4).float()
    assert read_best_paths(outputs) == [[0, 0, 1, 2], []]
    assert read_texts(20 * outputs) == [[0, 0, 1, 2], []]


def test_the_likeliest_text_is_read_and_not_what_the_best_signs_of_the_columns_spell():
    outputs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()  # 0.36 for nothing, and 0.64 for one sign, in three ways
    assert read_best_paths(outputs) == [[]]
    assert read_texts(outputs) == [[0]]
    long = torch.tensor([[[0.55, 0.25, 0.2]]]).log().expand(1, 3000, 3)  # of which no way to read it is likely
    assert len(read_texts(long)[0]) > 0
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        outputs = 2 * torch.randn(4, 3, generator=generator)
        every = [list(text) for length in range(5) for text in itertools.product([0, 1], repeat=length)]
        assert read_texts(outputs[None]) == [max(every, key=lambda text: brute_force(outputs, text))]


def test_the_likeliest_text_of_a_form_is_found():
    outputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    columns, names = outputs.softmax(dim=1).numpy(), ["7", "x"]
    every = [list(text) for length in range(6) for text in itertools.product([0, 1], repeat=length)]
    for pattern in ("[7x]{2}", "7+", "x7x?", "[7x]*"):
        matching = [text for text in every if re.fullmatch(pattern, "".join(names[label] for label in text))]
        likeliest = max(matching, key=lambda text: brute_force(outputs, text))
        assert match_text(columns, re.compile(pattern), names) == likeliest
    assert match_text(columns, re.compile("8"), names) == []


@pytest.mark.parametrize(
    ("read", "texts", "accuracy"),
    [
        ([[1, 2]], [[1, 2]], 1),
        ([[2]], [[1, 2]], 0.5),
        ([[], [3]], [[3, 3], [3, 3]], 0.25),
        ([[1, 2, 3]], [[3, 2, 1]], 1 / 3),
        ([[1, 1, 1, 1]], [[1]], -2),
        ([["1:17", "2:4"]], [["1:17"]], 0),
    ],
)
def test_signs_are_counted_by_edit_distance(read, texts, accuracy):
    assert sign_accuracy(read, texts) == pytest.approx(accuracy)


def test_metrics_count_over_batches():
    outputs = torch.nn.functional.one_hot(torch.tensor([[1, 0, 1, 2], [0, 3, 0, 0], [1, 0, 0, 0]]), 4).float() * 20
    labels = torch.tensor([[0, 0, 1], [2, 1, -1], [0, -1, -1]])
    for metric, expected in ((TextAccuracy(), 2 / 3), (SignAccuracy(), 5 / 6)):
        for rows in ([0, 1], [2]):
            metric.update(outputs[rows], labels[rows])
        assert metric.compute().item() == pytest.approx(expected)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder in which a tiny reader was trained."""
    home = tmp_path_factory.mktemp("reader")
    draw_digits(home / "digits")
    train_in(home, *FIT)
    return home


@pytest.fixture
def reader(tiny, tmp_path, monkeypatch, capsys):
    """The run folder of a tiny reader, in a folder of its own."""
    shutil.copytree(tiny, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    capsys.readouterr()
    return Path("runs/tiny/version_0")


def test_a_run_leaves_what_a_classifiers_run_leaves(reader, capsys):
    summary = json.loads((reader / "summary.json").read_text())
    assert summary["model"] == "LineReader"
    assert summary["val_images"] == 24
    assert summary["val_sign_accuracy"] <= 1
    for name in ("accuracy.png", "augmentation.png", "mistakes.png"):
        assert Image.open(reader / name).size[0] > 500
    assert (reader / "split.csv").read_text().splitlines()[0] == "file,label,subset"
    model = load_network(reader / "checkpoints" / "best.ckpt", LineReader)
    assert model.class_names == ["0_digits", "1_digits", "2_digits"]
    assert model.calibration.temperature != 1
    printed = run(capsys, "test", "--ckpt_path", best(reader))
    assert "test_sign_accuracy" in printed
    accuracy = float(re.search(r"test_accuracy +(\S+)", printed)[1])
    assert accuracy == pytest.approx(summary["val_accuracy"], abs=1e-4)


def test_each_network_learns_from_its_part_of_a_batch_and_all_together_are_asked():
    torch.manual_seed(0)
    model = LineReader(["0", "1"], 1, 32, width=2, members=3)
    lines = torch.randint(0, 256, (7, 1, 32, 64), dtype=torch.uint8)
    pixels = (lines.float() / 255 - 0.15) / 0.25
    alone = list(zip(model.features, model.head, strict=True))
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0
    with torch.no_grad():
        for (features, head), rows in zip(alone, ([0, 1, 2], [3, 4], [5, 6]), strict=True):
            expected = head(features(pixels[rows]))[:, :, 0].transpose(1, 2)
            assert torch.allclose(model(lines)[rows], expected, atol=1e-5)
        assert model(lines[:2]).shape == (2, 16, 3)  # fewer lines than networks
        model.eval()
        shares = [head(features(pixels))[:, :, 0].softmax(dim=1).transpose(1, 2) for features, head in alone]
        assert torch.allclose(model(lines).exp(), torch.stack(shares).mean(dim=0), atol=1e-5)
        assert not torch.allclose(shares[0], shares[1], atol=1e-3)


def test_no_network_goes_without_lines(reader, capsys):
    message = "data.batch_size must be at least 3, so that each of the reader's networks learns from a line, got 2"
    assert message in fail(capsys, "fit", *FIT, "--model.members", "3", "--data.batch_size", "2")


def test_weights_of_another_number_of_networks_are_told(reader, capsys):
    message = f"model.members must be 3, as many networks as {best(reader)} has, got 4"
    assert message in fail(capsys, "fit", *FIT, "--model.weights", best(reader), "--model.members", "4")


def test_weights_of_another_width_are_not_taken_for_those_of_other_classes(reader, capsys, caplog):
    message = f"{best(reader)}: not the weights of a LineReader: size mismatch"
    assert message in fail(capsys, "fit", *FIT, "--model.weights", best(reader), "--model.width", "8")
    assert "other classes" not in caplog.text


def test_a_reader_has_one_network_at_least():
    with pytest.raises(UserError, match="members must be at least 1, got 0"):
        LineReader(["0", "1"], 1, 32, members=0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_resumed_run_ends_with_the_same_weights(reader, capsys, precision):
    constant = ("--model.recipe.schedule", "constant", "--trainer.precision", precision)
    run(capsys, "fit", *FIT, *constant, "--name", "whole")
    run(capsys, "fit", *FIT, *constant, "--name", "part", "--trainer.max_epochs", "1")
    last = {name: f"runs/{name}/version_0/checkpoints/last.ckpt" for name in ("whole", "part", "rest")}
    run(capsys, "fit", "--ckpt_path", last["part"], "--name", "rest", "--trainer.max_epochs", "2")
    whole, rest = (torch.load(last[name])["state_dict"] for name in ("whole", "rest"))
    assert whole.keys() == rest.keys()
    assert all(torch.equal(whole[name], rest[name]) for name in whole)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_all_commands_and_forms_agree_on_a_reader(reader, capsys, precision):
    run(capsys, "fit", *FIT, "--trainer.precision", precision, "--name", "agrees")
    folder = Path("runs/agrees/version_0")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["precision"] == precision
    lines = Run(folder).load_data().val_set
    model = load_network(Path(best(folder)), LineReader)
    found = read_dataset(model, lines)
    right = int(found.right.sum())
    assert summary["val_mistakes"] == len(lines) - right
    assert summary["val_sign_accuracy"] == pytest.approx(found.sign_accuracy)
    assert summary["history"][summary["best_epoch"] - 1]["val_accuracy"] == pytest.approx(right / len(lines))
    for command, subset in (("validate", "val"), ("test", "test")):
        printed = run(capsys, command, "--ckpt_path", best(folder))
        assert float(re.search(rf"{subset}_accuracy +(\S+)", printed)[1]) == pytest.approx(right / len(lines), abs=1e-4)
        signs = float(re.search(rf"{subset}_sign_accuracy +(\S+)", printed)[1])
        assert signs == pytest.approx(found.sign_accuracy, abs=1e-4)

    assert export.main([str(folder), "exported"]) == 0
    assert {path.name for path in Path("exported").iterdir()} == {
        *("README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors")
    }
    images = lines.batch(range(len(lines))).images
    session = onnxruntime.InferenceSession("exported/model.onnx", providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        forms = [
            load_network(Path("exported"), LineReader).probabilities(images),
            torch.export.load("exported/model.pt2").module()(images),
            torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
        ]
    for form in forms:
        torch.testing.assert_close(form, found.probabilities, atol=1e-4, rtol=0)
        assert read_texts(form.log()) == found.read
    card = Path("exported/README.md").read_text()
    assert "A reader of numbers on pictures" in card
    assert f"{right / len(lines):.2%} of its {len(lines)} validation lines" in card
    assert "{" not in card.partition("```json")[0]

    write_line("line.png", [0, 1, 2])
    capsys.readouterr()
    paths = (best(folder), "exported")
    said = [run(capsys, "line.png", "--ckpt_path", path, "--json", main=read.main) for path in paths]
    of_checkpoint, of_program = ([json.loads(line) for line in text.splitlines()] for text in said)
    assert of_checkpoint
    for number, same in zip(of_checkpoint, of_program, strict=True):
        assert same == {**number, "confidence": pytest.approx(number["confidence"], abs=1e-4)}


def write_line(path, digits):
    """A picture of one line, in dark ink on white."""
    line = Image.new("L", (8 + 36 * len(digits), 50), 240)
    for place, digit in enumerate(digits):
        ink = 255 - np.asarray(draw_digit(digit, place).convert("L"))
        line.paste(Image.fromarray(ink).resize((36, 36)), (4 + 36 * place, 7))
    line.save(path)


def test_weights_that_are_not_finite_are_said_and_not_read(reader, capsys):
    checkpoint = torch.load(best(reader))
    checkpoint["state_dict"]["head.0.weight"].fill_(torch.nan)
    torch.save(checkpoint, "nan.ckpt")
    write_line("line.png", [0, 1])
    assert "are not finite" in fail(capsys, "line.png", "--ckpt_path", "nan.ckpt", main=read.main)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [
                "--model",
                "LineReader",
                "--data",
                "ImageFolderDataModule",
                "--data.root",
                "digits",
                "--data.image_size",
                "32",
            ],
            "a LineReader takes lines, as StringsDataModule has them, not ImageFolderDataModule",
        ),
        (["--data", "StringsDataModule", *DIGITS], "StringsDataModule has lines, which a CustomCNN can't read"),
        (
            [*FIT, "--data.digits.root", "photos"],
            "lines are composed of strokes on an even ground",
        ),
    ],
    ids=["images", "lines", "photographs"],
)
def test_data_of_another_kind_are_one_clear_line(workplace, photos, capsys, options, message):
    if "photos" in options:
        options = [option for option in options if not option.startswith(("--data.digits.classes", "["))]
    assert message in fail(capsys, "fit", *options)
    assert not (workplace / "runs").exists()


def test_each_kind_of_network_is_refused_where_the_other_is_meant(tiny, trained, capsys):
    assert "a LineReader, for the command `read`" in fail(
        capsys, "predict", "--ckpt_path", best(tiny / "runs" / "tiny" / "version_0"), "--images", "."
    )
    draw_digit(0, 0).save("digit.png")
    assert read.main(["digit.png", "--ckpt_path", best(trained)]) == 1
    assert "a CustomCNN, where a LineReader is expected" in capsys.readouterr().err


@pytest.fixture
def strings(reader):
    """A folder of 12 labelled lines."""
    folder = Path("strings")
    folder.mkdir()
    rows = []
    for number in range(12):
        labels = [number % 3, (number + 1) % 3, number % 2]
        write_line(folder / f"{number}.png", labels)
        rows.append((f"{number}.png", "".join(map(str, labels))))
    with (folder / "strings.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "digits"), *rows])
    return folder


def test_labelled_lines_are_read_split_and_trained_on(strings, capsys, monkeypatch):
    lines = read_lines(strings, ["0", "1", "2"])
    assert lines.pixels.shape == (12, 1, 32, 160)
    assert lines.labels[4, :4].tolist() == [1, 2, 0, -1]
    assert (lines.pixels.reshape(12, -1).max(axis=1) > 200).all()
    for name in ("0", "1", "2"):
        Path(f"digits/{name}_digits").rename(f"digits/{name}")
    classes = ("--data.digits.classes", '["0", "1", "2"]')
    run(capsys, "fit", *FIT, *classes, "--data.strings", "strings", "--name", "own")
    rows = Path("runs/own/version_0/split.csv").read_text().splitlines()
    subsets = [row["subset"] for row in csv.DictReader(rows)]
    assert subsets.count("val") == 2
    assert subsets.count("train") == 10
    assert json.loads(Path("runs/own/version_0/summary.json").read_text())["val_images"] == 2
    run(capsys, "fit", *FIT, *classes, "--model.weights", "runs/own/version_0/checkpoints/best.ckpt", "--name", "more")
    for folder in Path("digits").iterdir():  # lines to train and test on need no others: one a class can't be split
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    only = ("--data.strings", "strings", "--data.composed", "0")
    run(capsys, "fit", *FIT, *classes, *only, "--name", "only")
    monkeypatch.setattr(MNISTDataModule, "prepare_data", lambda self: pytest.fail("MNIST is downloaded"))
    mnist = ("--model", "LineReader", "--model.width", "4", "--data", "StringsDataModule")
    run(capsys, "fit", *mnist, *only, "--trainer.max_epochs", "1", "--name", "offline")
    printed = run(
        capsys, "test", "--ckpt_path", "runs/own/version_0/checkpoints/best.ckpt", "--data.test_strings", "strings"
    )
    model = load_network(Path("runs/own/version_0/checkpoints/best.ckpt"), LineReader)
    right = read_dataset(model, lines).right.float().mean().item()
    assert float(re.search(r"test_accuracy +(\S+)", printed)[1]) == pytest.approx(right, abs=1e-4)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "strings.csv: no such file or directory"),
        ("a,b\n1,2\n", "not a table of the columns file,digits"),
        ("file,digits\n", "names no file"),
        ("file,digits\n0.png,01x\n", "0.png: the text '01x' is not of the signs 0, 1, 2"),
        ("file,digits\n0.png,\n", "0.png: the text '' is not of the signs"),
        ("file,digits\n0.png\n", "0.png: the text '' is not of the signs"),
        ("digits,file\n01\n", "names no file for the text '01'"),
        (f"file,digits\n0.png,{21 * '1'}\n", f"0.png: the text '{21 * '1'}' has no room in the line's 40 columns"),
        ("file,digits\nmissing.png,01\n", "missing.png: no such file or directory"),
        ('file,digits\n"' + 200_000 * "0", "not a table of the columns file,digits"),
    ],
)
def test_labelled_lines_that_are_damaged_are_a_clear_error(strings, table, message):
    (strings / "strings.csv").unlink()
    if table is not None:
        (strings / "strings.csv").write_text(table)
    with pytest.raises(UserError, match=re.escape(message)):
        read_lines(strings, ["0", "1", "2"])


def test_lines_on_which_nothing_was_found_are_named(strings, caplog):
    Image.new("L", (80, 40), 255).save(strings / "3.png")
    read_lines(strings, ["0", "1", "2"])
    assert "nothing was found on 1 of 12 lines (3.png)" in caplog.text


def lines_of(strings, **options):
    """A datamodule of labelled lines, and of composed ones of the same three digits."""
    data = StringsDataModule(ImageFolderDataModule("digits", image_size=28), strings=strings, **options)
    data.digits.choose_classes = lambda available: ["0", "1", "2"]
    return data


@pytest.fixture
def named(strings):
    """Such a folder, beside one of digits by the same names."""
    for name in ("0", "1", "2"):
        Path(f"digits/{name}_digits").rename(f"digits/{name}")
    return strings


def test_a_long_line_is_not_squeezed_and_composed_ones_stay_as_they_are(named):
    narrow, wide = (lines_of("strings", composed=16) for _ in range(2))
    narrow.setup("fit")
    write_line(named / "long.png", [0, 1, 2] * 5)
    with (named / "strings.csv").open("a") as file:
        file.write(f"long.png,{5 * '012'}\n")
    wide.setup("fit")
    assert set(narrow.val_set.names) - set(wide.val_set.names) <= {"long.png"}
    assert len(set(narrow.val_set.names) & set(wide.val_set.names)) >= 1
    lines = read_lines(named, ["0", "1", "2"])
    width = lines.pixels.shape[3]
    assert width == crop_line(Image.open(named / "long.png"), 32).shape[1] > 300
    assert (lines.pixels[:-1, ..., 160:] == 0).all()
    assert wide.val_set.pixels.shape[3] == wide.train_set.pixels.shape[3] == width
    composed, in_wide = (data.augment(data.train_set.batch(range(18)), epoch=0) for data in (narrow, wide))
    assert in_wide.images.shape == (18, 1, 32, width)
    assert torch.equal(in_wide.images[:16, ..., :160], composed.images[:16])
    assert (in_wide.images[:16, ..., 160:] == 0).all()
    there = composed.labels[:16, :8] != -1
    places = composed.middles[:16, :8][there] * 160 / width
    torch.testing.assert_close(in_wide.middles[:16, :8][there], places)


def test_one_dash_does_not_widen_all_lines(named):
    dash = Image.new("L", (700, 60), 255)
    dash.paste(0, (50, 30, 650, 36))
    dash.save(named / "5.png")
    assert read_lines(named, ["0", "1", "2"]).pixels.shape[3] == 3 * 64  # of three signs


def test_lines_on_which_nothing_was_found_are_tested_on_only(named, caplog):
    for name in ("3.png", "7.png"):
        Image.new("L", (80, 40), 255).save(named / name)
    data = lines_of("strings", composed=0, test_strings="strings", repeats=1)
    data.setup("fit")
    assert "nothing was found on 2 of 12 lines (3.png, 7.png), which are left out" in caplog.text
    names = data.train_set.names + data.val_set.names
    assert len(names) == 10
    assert not {"3.png", "7.png"} & set(names)
    data.setup("test")
    assert len(data.test_set) == 12
    for number in range(12):
        Image.new("L", (80, 40), 255).save(named / f"{number}.png")
    with pytest.raises(UserError, match=r"^strings: nothing was found on any of the 12 lines"):
        lines_of("strings").setup("fit")


def test_digits_are_loaded_where_lines_are_composed_of_them_only(named, monkeypatch, caplog):
    caplog.set_level("INFO")
    data = lines_of("strings")
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolderDataModule, "setup", lambda self, stage: pytest.fail("digits are loaded"))
        patch.setattr(ImageFolderDataModule, "prepare_data", lambda self: pytest.fail("digits are decoded"))
        data.trainer = Trainer(accelerator="cpu", logger=False)
        for stage in ("validate", "test"):
            data.trainer.state.fn = stage
            data.prepare_data()
            data.setup(stage)
            assert (len(data.val_set), len(data.train_set)) == (2, data.composed + 4 * 10)
    assert data.test_set is data.val_set
    assert "There is no test set: the validation lines are used." in caplog.text
    data.setup("fit")
    assert data.augment(data.train_set.batch(range(4)), epoch=0).images.amax(dim=(1, 2, 3)).min() > 0.5


def test_copies_of_one_line_cannot_be_split(strings):
    (strings / "strings.csv").write_text("file,digits\n0.png,010\n0.png,010\n")
    data = lines_of("strings", composed=0)
    with pytest.raises(UserError, match="strings: at least two different lines are needed, of which one is validated"):
        data.setup("fit")


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_reader_trains_in_every_precision_of_the_trainer(workplace, capsys, precision):
    assert "validation accuracy" in run(capsys, "fit", *FIT, "--trainer.precision", precision)


@pytest.mark.parametrize(
    "wrong", [{"composed": 0}, {"composed": -1}, {"val_composed": 0}, {"repeats": 0}, {"val_fraction": 1}]
)
def test_arguments_out_of_range_are_a_clear_error(wrong):
    with pytest.raises(UserError):
        StringsDataModule(**wrong)


def test_a_reader_takes_grey_lines_of_its_height_only():
    with pytest.raises(UserError, match="takes grey lines of 32 pixels, got 28 and 1 channels"):
        LineReader(["0"], 1, 28)
    assert LineReader(["0", "1"], 1, 32, width=4)(torch.zeros(2, 1, 32, 100, dtype=torch.uint8)).shape == (2, 25, 3)
