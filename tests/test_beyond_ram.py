"""Training from more pixels than the process may have memory for."""

import resource

import numpy as np
import psutil
import pytest
from PIL import Image

from lightning_modules.cli import main
from tests.conftest import TINY, draw_digit

SIZE, COUNT = 400, 900  # pixels square, images: 144 MB
ROOM = 80 * 2**20  # for the network, batches, and what reads ahead


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


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_DATA"), reason="Linux can cap memory that is no mapped file")
def test_pixels_beyond_the_memory_are_read_from_the_mapped_cache(many_digits, capsys, monkeypatch):
    assert main(["fit", "--config", TINY, "--name", "warm"]) == 0  # what importing and starting up take for good
    used = psutil.Process().memory_info().data
    size = ["--data.root", str(many_digits), "--data.image_size", str(SIZE), "--data.batch_size", "4"]
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (used + ROOM, hard))
    try:
        assert main(["fit", "--config", TINY, *size, "--trainer.max_epochs", "1", "--data.max_ram_share", "0"]) == 0
        with pytest.raises(MemoryError):
            np.ones((COUNT, SIZE, SIZE), np.uint8)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert "validation accuracy" in capsys.readouterr().out
