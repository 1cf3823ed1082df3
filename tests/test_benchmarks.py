"""The benchmarks run; how fast they are is for no test to say."""

import json

import pytest

from benchmarks.__main__ import main


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


def test_an_unknown_benchmark_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "no such benchmark: speed; there are training, goal" in capsys.readouterr().err
