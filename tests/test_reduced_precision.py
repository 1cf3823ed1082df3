"""An encoder that computes in bf16, chosen by hand and by the machine."""

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_modules import hardware
from retrieval.cli import main
from retrieval.encoders.resnet import ResNetEncoder
from retrieval.stores.sqlite import SQLiteStore
from tests.conftest import draw_photo


def encode(precision, weights):
    encoder = ResNetEncoder("resnet18", weights, "layer1", precision=precision, device="cpu")
    return encoder.encode([encoder.prepare(draw_photo(kind, 1)) for kind in range(3)])


def kept_precision(index):
    with SQLiteStore(Path(index)) as store:
        return json.loads(store.header["built"])["arguments"]["precision"]


def test_vectors_of_both_precisions_can_be_compared(resnet_weights):
    full, reduced = (encode(precision, resnet_weights) for precision in ("full", "bf16"))
    assert reduced.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(reduced, axis=1), 1, atol=1e-6)
    apart = np.linalg.norm(full - reduced, axis=1)
    assert (apart > 1e-5).all()  # it did compute in bf16
    assert apart.max() < 0.2 * np.linalg.norm(full[0] - full[1])


@pytest.mark.parametrize(("bf16", "chosen"), [(True, "bf16"), (False, "full")])
def test_the_machine_chooses_only_where_it_is_asked_to(monkeypatch, resnet_weights, bf16, chosen):
    full = encode("full", resnet_weights)
    monkeypatch.setattr(hardware, "cpu_has_bf16", lambda: bf16)
    np.testing.assert_array_equal(encode("auto", resnet_weights), encode(chosen, resnet_weights))
    np.testing.assert_array_equal(encode("full", resnet_weights), full)


@pytest.mark.parametrize("first", ["full", "bf16"])
def test_machines_of_either_precision_share_an_index(photos, monkeypatch, resnet_weights, capsys, first):
    monkeypatch.chdir(photos.parent)
    encoder = ["--encoder", "resnet18", "--weights", str(resnet_weights), "--layer", "layer1"]
    cpu = ["--device", "cpu"]  # on a GPU an image alone and in a batch differ by more than the bound below
    assert main(["index", "photos", *encoder, *cpu, "--index", "index.sqlite", "--precision", first]) == 0
    assert kept_precision("index.sqlite") == first
    found = {}
    for other in ("full", "bf16"):
        query = ["query", "photos/sky/0.jpg", "--database", "photos", "--index", "index.sqlite", "--include-self"]
        capsys.readouterr()
        assert main([*query, *cpu, "--precision", other, "--json"]) == 0
        found[other] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[first][0]["distance"] < 1e-5
    for rows in found.values():
        assert rows[0]["path"] == "photos/sky/0.jpg"
        assert rows[0]["distance"] < 0.2 * rows[1]["distance"]
    draw_photo(0, 30).save("photos/sky/new.jpg", quality=95)
    assert main(["index", "photos", *cpu, "--index", "index.sqlite"]) == 0
    assert "1 encoded, 0 known by content, 12 unchanged" in capsys.readouterr().out
    assert kept_precision("index.sqlite") == first


def test_a_precision_that_there_is_not_is_one_clear_line(photos, resnet_weights, trained, capsys):
    assert main(["index", str(photos), "--encoder", str(trained / "checkpoints" / "best.ckpt"), "--precision", "bf16"])
    assert capsys.readouterr().err == "error: ClassifierEncoder has no option --precision: leave it out\n"
