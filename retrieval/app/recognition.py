"""Recognise an image by a trained classifier, and find the training images that it resembles."""

from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from datamodules.dataset import OUTLIER, ImageDataset
from datamodules.errors import UserError
from datamodules.images import read_image
from datamodules.normalizer import max_side, normalize
from lightning_modules.answers import refusal
from lightning_modules.checkpoint import load_classifier
from lightning_modules.run import Run
from retrieval.search import Vectors, nearest

BATCH = 256


@dataclass(frozen=True)
class Neighbor:
    """A training image that the classifier sees as similar.

    Attributes:
        pixels: (C, S, S), uint8.
        label: Its class; ``not a digit`` if it shows none.
        distance: Euclidean distance of the features of length 1, in [0, 2].
    """

    pixels: npt.NDArray[np.uint8]
    label: str
    distance: float


@dataclass(frozen=True)
class Recognition:
    """What a classifier says of an image.

    Attributes:
        probabilities: Of each class, in [0, 1].
        score: How like the training images it is, in [0, 1]; below 0.5 is none of the classes.
        refusal: Why it is none of the classes; empty if it is one.
        seen: (C, S, S), uint8: the pixels that it was given.
        similar: Training images, the closest first; none as long as they aren't known.
    """

    probabilities: dict[str, float]
    score: float
    refusal: str
    seen: npt.NDArray[np.uint8]
    similar: list[Neighbor]

    @property
    def best(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)


class Recogniser:
    """A classifier with the images that it was trained on, which are looked through in the background.

    Args:
        path: Its checkpoint, or the folder that it was exported to, which doesn't know its training images.

    Attributes:
        class_names: Names of the classes that it tells apart.
        note: Why there are no similar images; empty once there are.
        train_set: The images that it was trained on; None as long as they aren't known.

    Raises:
        UserError: The classifier can't be read.
    """

    def __init__(self, path: Path) -> None:
        self._model = load_classifier(path)
        self._model.use_memory_format(torch.device("cpu"))
        self._model.eval().requires_grad_(False)
        self.class_names = self._model.class_names
        self._features: Vectors | None = None
        self.train_set: ImageDataset | None = None
        self._learning = Thread(target=self._learn_images, args=[Run.of_checkpoint(path)], daemon=True)
        if path.is_dir():
            self.note = "An exported classifier doesn't know its training images: a checkpoint shows similar ones."
            return
        self.note = "The training images are being looked through; similar ones will be shown soon."
        self._learning.start()

    def wait(self) -> None:
        """Wait until the training images are known, if they can be."""
        if self._learning.is_alive():
            self._learning.join()

    def _learn_images(self, run: Run) -> None:
        try:
            data = run.load_data()
        except (UserError, OSError):
            self.note = "No similar images: the training images aren't found from the folder that this was started in."
            return
        images = data.train_set
        assert isinstance(images, ImageDataset)
        parts = [
            self._encode(images.batch(range(start, min(start + BATCH, len(images)))).images)
            for start in range(0, len(images), BATCH)
        ]
        self.train_set, self._features, self.note = images, np.concatenate(parts), ""

    @torch.inference_mode()
    def _encode(self, pixels: torch.Tensor) -> Vectors:
        vectors: Vectors = F.normalize(self._model.forward_pooled(pixels).float(), dim=1).numpy()
        return vectors

    def read(self, path: Path) -> Image.Image:
        """A file as a picture to recognise.

        Raises:
            ImageError: It can't be read.
        """
        return read_image(path, channels=3, side=max_side(self._model.normalizer))

    @torch.inference_mode()
    def recognise(self, image: Image.Image, k: int = 4) -> Recognition | None:
        """Classify an image, as ``predict`` does: brought into the training images' form, if they are of digits.

        Args:
            image: As ``read`` gives it; of mode ``RGB`` or ``L``, of any size.
            k: How many similar training images to give.

        Returns:
            None if there is nothing on the image.
        """
        model = self._model
        seen = normalize(image, model.image_size, model.in_channels, model.normalizer)
        if seen.digits == 0:
            return None
        pixels = torch.from_numpy(seen.pixels[None].copy())
        logits = model(pixels)
        named = dict(zip(model.class_names, model.calibration.probabilities(logits)[0].tolist(), strict=True))
        score = model.calibration.familiarity(logits).item()
        why = "" if model.normalizer is None else refusal(seen.digits, score)
        return Recognition(named, score, why, seen.pixels, self._similar(self._encode(pixels), k))

    def _similar(self, vector: Vectors, k: int) -> list[Neighbor]:
        features, images = self._features, self.train_set
        if features is None or images is None:
            return []
        ((rows, distances),) = nearest(features, vector, k)
        batch = images.batch(rows.tolist())
        known = self._model.class_names
        names = ["not a digit" if label == OUTLIER else known[label] for label in batch.labels.tolist()]
        return [
            Neighbor(pixels, name, distance)
            for pixels, name, distance in zip(batch.images.numpy(), names, distances.tolist(), strict=True)
        ]
