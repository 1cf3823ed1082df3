"""Parts of images are found by the vectors of their crops."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from datamodules.errors import UserError
from datamodules.images import to_pixels
from retrieval.cli import main
from retrieval.encoders.base import CROPS
from retrieval.index import ImageIndex
from retrieval.query import Example
from retrieval.stores.location import parse_location
from retrieval.update import Updater
from tests.conftest import draw_photo
from tests.small_encoder import SmallEncoder


@pytest.fixture
def place(photos, monkeypatch):
    """A current folder with ``photos/``; each picture has four different quarters."""
    monkeypatch.chdir(photos.parent)
    for number, path in enumerate(sorted(photos.glob("*/*.jpg"))):
        sheet = Image.new("RGB", (120, 120))
        for corner in range(4):
            sheet.paste(
                draw_photo((number + corner) % 3, 50 + 4 * number + corner, (60, 60)),
                (corner % 2 * 60, corner // 2 * 60),
            )
        sheet.save(path, quality=95)
    return photos.parent


class Colours(SmallEncoder):
    """The colours of an image are its maps."""

    def prepare(self, image):
        return to_pixels(image, 12)

    def maps(self, pixels):
        return pixels.float() / 255 + 0.01


def rows(capsys, *args):
    assert main([*args, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_whole_comes_first_and_is_what_it_is_without_crops():
    encoder = SmallEncoder()
    images = [encoder.prepare(draw_photo(kind, 1)) for kind in range(3)]
    crops = encoder.encode_crops(images)
    assert (crops.shape, crops.dtype) == ((3, CROPS, encoder.dimension), np.float32)
    np.testing.assert_allclose(np.linalg.norm(crops, axis=2), 1, atol=1e-6)
    np.testing.assert_allclose(crops[:, 0], encoder.encode(images), atol=1e-6)


def test_a_part_finds_its_image(place):
    names = sorted(place.glob("photos/*/*.jpg"))
    two_thirds = {"left": (0, 40, 80, 120), "right": (40, 0, 120, 80)}
    for name, region in [(name, region) for name in names for region in two_thirds.values()]:
        found = {}
        for crops in (False, True):
            with ImageIndex.open("photos", Colours(), f"{crops}.sqlite") as index:
                index.update(crops=crops)
                matches = index.search(Example(name, region), k=12, include_self=True)
            assert sorted(place / match.path for match in matches) == names
            found[crops] = {place / match.path: match.distance for match in matches}
        assert found[True][name] < 0.02 < found[False][name]
        assert min(found[True], key=found[True].get) == name
    with ImageIndex.open("photos", Colours(), "True.sqlite") as index:
        assert index.search(names[0], include_self=True)[0].distance == 0


@pytest.mark.slow
def test_an_index_stays_with_its_crops_and_all_else_goes_by_the_whole_images(place, resnet_weights, capsys):
    encoder = ["--encoder", "resnet18", "--weights", str(resnet_weights), "--layer", "layer1"]
    for index, more in (("whole.sqlite", []), ("crops.sqlite", ["--crops"])):
        assert main(["index", "photos", *encoder, "--index", index, *more]) == 0
    shutil.copy("photos/sky/0.jpg", "photos/grass/copy.jpg")
    draw_photo(0, 3).save("photos/sky/new.jpg")
    told = {}
    for index in ("whole.sqlite", "crops.sqlite"):
        assert main(["index", "photos", "--index", index]) == 0
        assert "1 encoded, 1 known by content, 12 unchanged" in capsys.readouterr().out
        told[index] = [rows(capsys, command, "photos", "--index", index) for command in ("evaluate", "audit")]
        assert main(["export", "photos", f"{index}.npz", "--index", index]) == 0
        assert main(["import", "photos", f"{index}.npz", "--index", f"again_{index}"]) == 0
        capsys.readouterr()
    assert told["whole.sqlite"] == told["crops.sqlite"]
    one, other = (np.load(f"{index}.npz")["vector"] for index in told)
    np.testing.assert_array_equal(one, other)


def test_crops_that_can_not_be_are_one_clear_line(place, resnet_weights, capsys):
    encoder = ["--encoder", "resnet18", "--weights", str(resnet_weights), "--layer", "layer1"]
    assert main(["index", "photos", *encoder]) == 0
    capsys.readouterr()
    assert main(["index", "photos", "--crops"]) == 1
    assert "was made without --crops: delete it, or name another place with --index" in capsys.readouterr().err
    with pytest.raises(UserError, match="--crops and --storage float16 are for files, not for Milvus"):
        Updater(place / "photos", SmallEncoder(), parse_location("http://127.0.0.1:1/photos"), crops=True).run()
