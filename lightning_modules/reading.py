"""Run a reader over lines, outside of a Trainer."""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.dataset import BatchDataset
from datamodules.loading import batches
from lightning_modules.calibration import binary_calibration_error
from lightning_modules.ctc import as_lists, read_texts, sign_accuracy
from lightning_modules.ctc_decoding import text_probability
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
    scores = torch.cat(outputs)
    read = read_texts(scores / calibration.temperature)
    probabilities = (scores / calibration.temperature).softmax(dim=2)
    calibration.to(model.device)
    confidence, raw = (
        torch.tensor([text_probability(*pair) for pair in zip(columns.numpy(), read, strict=True)])
        for columns in (probabilities, scores.softmax(dim=2))
    )
    texts = [text for part in labels for text in as_lists(part)]
    return Readings(read, texts, confidence, raw, probabilities)
