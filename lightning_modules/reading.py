"""Run a reader over lines, outside of a Trainer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datamodules.dataset import BatchDataset
from datamodules.lines import find_lines
from datamodules.loading import batches
from datamodules.text import as_text
from lightning_modules.calibration import binary_calibration_error
from lightning_modules.ctc import as_lists, ctc_losses, match_text, read_texts, sign_accuracy
from lightning_modules.evaluation import check_finite
from lightning_modules.hardware import full_precision
from lightning_modules.networks.line_reader import LineReader


@dataclass(frozen=True)
class Readings:
    """What a reader says of lines, and what is true.

    Attributes:
        read: N texts, as rows of ``class_names``.
        texts: N texts that are right.
        confidence: (N,), float32 in [0, 1]: how likely each text is that was read.
        raw_confidence: The same before calibration.
        probabilities: (N, T, K + 1), float32, of the blank and of each sign in each column.
    """

    read: list[list[int]]
    texts: list[list[int]]
    confidence: Tensor
    raw_confidence: Tensor
    probabilities: Tensor

    @property
    def right(self) -> Tensor:
        """(N,), bool."""
        return torch.tensor([one == other for one, other in zip(self.read, self.texts, strict=True)])

    @property
    def calibration_errors(self) -> tuple[float, float]:
        """Expected calibration error of whole texts before and after temperature scaling."""
        right = self.right
        return binary_calibration_error(self.raw_confidence, right), binary_calibration_error(self.confidence, right)

    @property
    def sign_accuracy(self) -> float:
        """One less the edit distance as a share of the right texts' length."""
        return sign_accuracy(self.read, self.texts)


@torch.inference_mode()
def read_dataset(model: LineReader, lines: BatchDataset, batch_size: int = 64, calibrate: bool = False) -> Readings:
    """Read lines, on the model's device, in full precision.

    Args:
        model: The reader.
        lines: Lines with their texts.
        batch_size: Lines at once.
        calibrate: Fit the reader's calibration to them first.

    Raises:
        UserError: The network's outputs are not finite.
    """
    was_training = model.training
    model.eval()
    outputs, labels = [], []
    with full_precision(model.device):
        for batch in tqdm(batches(lines, batch_size), desc="Reading", delay=2, leave=False):
            outputs.append(check_finite(model(batch.images.to(model.device)).float()).cpu())
            labels.append(batch.labels)
    model.train(was_training)
    calibration = model.calibration.cpu()
    if calibrate:
        calibration.fit(outputs, labels)
    read = [read_texts(part) for part in outputs]
    pairs = [(part, as_labels(texts)) for part, texts in zip(outputs, read, strict=True)]
    confidence = torch.cat([calibration.confidence(*pair) for pair in pairs])
    raw = torch.cat([(-ctc_losses(*pair)).exp() for pair in pairs])
    probabilities = (torch.cat(outputs) / calibration.temperature).softmax(dim=2)
    calibration.to(model.device)
    texts = [text for part in labels for text in as_lists(part)]
    return Readings([text for part in read for text in part], texts, confidence, raw, probabilities)


@dataclass(frozen=True)
class Number:
    """A number that was read on a picture.

    Attributes:
        text: Its signs.
        confidence: How likely the text is, in [0, 1].
        box: Left, upper, right and lower edge in the picture's pixels.
        row: The row that it stands in, from 0 at the top.
    """

    text: str
    confidence: float
    box: tuple[int, int, int, int]
    row: int

    @property
    def doubtful(self) -> bool:
        """Whether it is more likely wrong than right."""
        return self.confidence < 0.5

    def to_dict(self) -> dict[str, Any]:
        """What is written of it: its row, from 1, text, confidence and box."""
        left, top, right, bottom = self.box
        where = {"left": left, "top": top, "width": right - left, "height": bottom - top}
        return {"row": self.row + 1, "text": self.text, "confidence": round(self.confidence, 6), **where}


@torch.inference_mode()
def read_picture(model: LineReader, picture: Image.Image, pattern: re.Pattern[str] | None = None) -> list[Number]:
    """Read the numbers on a picture, in the order in which they are read: rows from above, each from the left.

    Args:
        model: The reader.
        picture: Of mode ``L`` or ``RGB``, upright.
        pattern: What each number is to be, as a whole; what can't well be read so is left out.

    Returns:
        Numbers; none where nothing is taken for one.

    Raises:
        UserError: The network's outputs are not finite.
    """
    numbers = []
    for line in find_lines(picture, model.image_size):
        pixels = torch.from_numpy(line.pixels.copy())[None, None]
        with full_precision(model.device):
            outputs = check_finite(model(pixels.to(model.device)).float()).cpu()
        calibrated = outputs / model.calibration.temperature.cpu()
        (text,) = read_texts(outputs) if pattern is None else [match_text(calibrated[0], pattern, model.class_names)]
        if text:
            confidence = model.calibration.confidence(outputs, as_labels([text])).item()
            numbers.append(Number(as_text(text, model.class_names), confidence, line.box, line.row))
    return numbers


def as_labels(texts: Sequence[Sequence[int]]) -> Tensor:
    """B texts -> (B, L), int64, filled up with -1."""
    longest = max(map(len, texts), default=0)
    rows = [[*text, *[-1] * (longest - len(text))] for text in texts]
    return torch.tensor(rows, dtype=torch.int64).view(len(texts), longest)
