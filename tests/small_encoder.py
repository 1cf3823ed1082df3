"""An encoder that is no network, for tests of what is around it."""

import os
import time

import torch.nn.functional as F
from torch import Tensor

from datamodules.images import to_pixels
from retrieval.encoders.base import Encoder
from retrieval.index import ImageIndex
from retrieval.process_group import torchrun_group
from retrieval.stores.location import find_location


class SmallEncoder(Encoder):
    """48 colours of an image, averaged over four quarters; takes ``seconds`` a batch."""

    channels = 3

    def __init__(self, name="small", batch_size=4, seconds=0.0):
        super().__init__("cpu")
        self.arguments = {}
        self.identity = {"encoder": name, "weights": "none", "layer": "colours", "preprocessing": "plain 8"}
        self.batch_size = batch_size
        self.seconds = seconds

    def box(self, width, height):
        return 0, 0, width, height

    def prepare(self, image):
        return to_pixels(image, 8)

    def features(self, pixels: Tensor) -> Tensor:
        return self.maps(pixels).mean(dim=(2, 3))

    def maps(self, pixels: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return F.pixel_unshuffle(pixels.float() / 255 + 0.01, 4)


def index_folder(folder, seconds=0.0, batch_size=4, location=None):
    """What a process does that indexes a folder."""
    with ImageIndex.open(folder, SmallEncoder(seconds=seconds, batch_size=batch_size), location) as index:
        index.update()


def index_together(folder, rank, size, port, seconds=0.0, location=None, done=None):
    """What each process of a ``torchrun`` does that indexes a folder; puts what has been done."""
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in environment.items()})
    os.environ.update(MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="tests")
    with (
        torchrun_group() as group,
        ImageIndex(folder, SmallEncoder(seconds=seconds), find_location(folder, location)) as index,
    ):
        update = index.update(group=group)
        if done is not None:
            done.put((rank, update))
