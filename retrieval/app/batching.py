"""Requests that come at the same time go through the network together."""

from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Lock, Thread

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retrieval.encoders.base import Box, Encoder, Pixels
from retrieval.search import Vectors


class BatchingEncoder(Encoder):
    """Another encoder, for many threads: what they ask for while it computes is its next batch.

    On a CPU two batches are computed side by side, each by half of the cores: a batch that has all of them waits, layer
    by layer, for the core that is also decoding an image or answering a client. One that is alone has all.

    Args:
        encoder: What computes; from now on only through this.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.identity, self.arguments, self.channels = encoder.identity, encoder.arguments, encoder.channels
        self.max_side = encoder.max_side
        self.device = encoder.device
        self._threads = torch.get_num_threads()
        workers = 2 if self.device.type == "cpu" and self._threads > 1 else 1
        # Small enough that some wait for their turn while others are answered: the network is never idle then.
        self.batch_size = max(encoder.batch_size // (8 * workers), 1)
        self._waiting: SimpleQueue[tuple[Pixels, Future[Vectors]]] = SimpleQueue()
        self._busy, self._lock = 0, Lock()
        for _ in range(workers):
            Thread(target=self._serve, name="encoder", daemon=True).start()

    @property
    def origin(self) -> Encoder:
        return self._encoder.origin

    def box(self, width: int, height: int) -> Box:
        return self._encoder.box(width, height)

    def prepare(self, image: Image.Image) -> Pixels:
        return self._encoder.prepare(image)

    def seen(self, image: Image.Image) -> Image.Image:
        return self._encoder.seen(image)

    def features(self, pixels: Tensor) -> Tensor:
        return self._encoder.features(pixels)

    def maps(self, pixels: Tensor) -> Tensor:
        return self._encoder.maps(pixels)

    def encode(self, images: list[Pixels]) -> Vectors:
        futures: list[Future[Vectors]] = [Future() for _ in images]
        for request in zip(images, futures, strict=True):
            self._waiting.put(request)
        return np.stack([future.result() for future in futures])

    def encode_crops(self, images: list[Pixels]) -> Vectors:
        return self._encoder.encode_crops(images)

    def _serve(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < self.batch_size:
                try:
                    batch.append(self._waiting.get_nowait())
                except Empty:
                    break
            try:
                vectors = self._encode([pixels for pixels, _ in batch])
            except Exception as error:  # every caller that waits is told
                for _, future in batch:
                    future.set_exception(error)
                continue
            for (_, future), vector in zip(batch, vectors, strict=True):
                future.set_result(vector)

    def _encode(self, images: list[Pixels]) -> Vectors:
        with self._lock:
            self._busy += 1
            share = self._threads // self._busy
        try:
            torch.set_num_threads(share)  # of this Python thread alone
            return self._encoder.encode(images)
        finally:
            with self._lock:
                self._busy -= 1
