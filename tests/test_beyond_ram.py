"""Training from more pixels than the process may have memory for."""

import json
import multiprocessing

import numpy as np
import psutil
import pytest
from PIL import Image

from lightning_modules.cli import main
from tests.conftest import TINY, draw_digit

resource = pytest.importorskip("resource")
SIZE, COUNT = 200, 3000  # pixels square, images: 120 MB
ROOM = 80 * 2**20  # for the network, batches, pictures, and what reads ahead: half of it is needed


@pytest.fixture
def many_digits(workplace):
    """A folder of small files, which ``--data.image_size`` makes large."""
    for digit in range(3):
        folder = workplace / "many" / f"{digit}_digits"
        folder.mkdir(parents=True)
        for seed in range(COUNT // 3):
            pixels = np.asarray(draw_digit(digit, seed % 20)).copy()
            pixels[0, 0], pixels[0, 1] = seed % 256, seed // 256
            Image.fromarray(pixels).save(folder / f"{seed}.png")
    return workplace / "many"


def train_with_little_room(options: list[str]) -> None:
    """Train, with a cap on what the process may allocate; a process of its own, as there is no way back from some."""
    assert main(["fit", "--config", TINY, "--name", "warm"]) == 0  # what importing and starting up take for good
    used = psutil.Process().memory_info().data
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM, used + ROOM))
    assert main(["fit", "--config", TINY, "--trainer.max_epochs", "1", *options]) == 0
    with pytest.raises(MemoryError):
        np.ones((COUNT, SIZE, SIZE), np.uint8)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "RLIMIT_DATA"), reason="Linux can cap memory that is no mapped file")
def test_pixels_beyond_the_memory_are_read_from_the_mapped_cache(many_digits):
    options = ["--data.root", str(many_digits), "--data.image_size", str(SIZE), "--data.batch_size", "16"]
    options += ["--data.max_ram_share", "0"]
    process = multiprocessing.get_context("spawn").Process(target=train_with_little_room, args=[options])
    process.start()
    process.join(300)  # a thread that gets no memory may leave the others waiting
    process.kill()
    assert process.exitcode == 0
    summary = many_digits.parent / "runs" / "custom_cnn" / "version_0" / "summary.json"
    assert json.loads(summary.read_text())["val_images"] == COUNT // 5
