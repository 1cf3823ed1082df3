"""The benchmarks run; how fast they are is for no test to say."""

import json

import numpy as np
import pytest

from benchmarks.__main__ import BENCHES, main
from benchmarks.harness import Measurement
from benchmarks.remote import HEADER, fill, update, write_files
from retrieval.stores.location import parse_location


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["training", "goal", "finetuning", "precision", "data", "handwriting", "reading", "retrieval", "startup"]
)
def test_a_benchmark_runs(name, tmp_path, capsys):
    assert main([name, "--smoke", "--threads", "1", "--json", str(tmp_path / "figures.json")]) == 0
    out = capsys.readouterr().out
    assert "ours" in out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["versions"]["torch"]
    for measurement in figures["measurements"]:
        assert all(value > 0 for values in measurement["values"].values() for value in values)


def test_figures_are_written_after_each_benchmark(tmp_path, monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setitem(BENCHES, "data", lambda options: [Measurement("speed", "s", {"ours": [1.0]})])
    monkeypatch.setitem(BENCHES, "startup", interrupted)
    assert main(["data", "startup", "--json", str(tmp_path / "figures.json")]) == 130
    (measurement,) = json.loads((tmp_path / "figures.json").read_text())["measurements"]
    assert measurement["values"] == {"ours": [1.0]}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--json", "no/figures.json"], "error: no/figures.json: no such folder"),
        (["--json", "."], "error: .: a folder; name a file in it"),
        (["--data-root", "nowhere"], "nowhere: no such folder"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_measured(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BENCHES, "data", lambda options: pytest.fail("is measured"))
    assert main(["data", *args]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_a_benchmark_without_its_files_is_left_out_with_a_word(tmp_path, capsys):
    assert main(["duplicates", "--data-root", str(tmp_path)]) == 0
    assert "duplicates: needs photographs and weights/resnet18_to_layer3.pth in --data-root" in capsys.readouterr().err


def test_the_memory_of_an_update_grows_with_its_images(tmp_path):
    held = []
    for count in (300, 1500):
        folder, location = write_files(tmp_path / f"{count}", count), parse_location(tmp_path / f"{count}.sqlite")
        with location.open(HEADER) as store:
            fill(store, np.eye(count, 8, dtype=np.float32))
        held.append(update(folder, location)[1])
    assert held[1] > 3 * held[0] > 0


def test_an_unknown_benchmark_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "no such benchmark: speed; there are training, goal" in capsys.readouterr().err
