"""Connectionist temporal classification (Graves et al. 2006, https://doi.org/10.1145/1143844.1143891).

A network gives, for each column of a line, the probability of each sign and of the blank, which comes first. A text is
read from columns by leaving repetitions out, and then blanks.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.functional.text import word_error_rate
from torchmetrics.text import WordErrorRate

from datamodules.dataset import OUTLIER
from lightning_modules.calibration import Temperature
from lightning_modules.ctc_decoding import BLANK, collapse, likeliest_texts

BLANK_WEIGHT = 0.3  # what a column without a sign counts, next to one with a sign


def ctc_losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """How unlikely each text is: the negative logarithm of its probability, over all ways to read it.

    Args:
        outputs: (B, T, K + 1), float: scores of the blank and of each sign, column by column.
        labels: (B, L), int64: rows of ``class_names``, filled up with -1.

    Returns:
        (B,), float32; 0 where the text doesn't fit into the columns, as for a batch of none.
    """
    if len(labels) == 0:
        return outputs.float().sum(dim=(1, 2))
    columns = torch.full((len(labels),), outputs.shape[1])
    lengths = (labels != OUTLIER).sum(dim=1)
    scores = outputs.float().log_softmax(dim=2).transpose(0, 1)
    return F.ctc_loss(scores, (labels + 1).clamp_min(0), columns, lengths, BLANK, reduction="none", zero_infinity=True)


def alignment_losses(outputs: Tensor, labels: Tensor, middles: Tensor) -> Tensor:
    """How unlikely it is that each sign is read where it stands, and nothing where none does.

    Where signs stand is more than connectionist temporal classification has to go by, which finds it by itself from
    texts alone, and learns from fewer lines with it: cross-entropy, column by column. The columns on both sides of a
    sign's middle are free.

    Args:
        outputs: (B, T, K + 1), float: scores of the blank and of each sign, column by column.
        labels: (B, L), int64: rows of ``class_names``, filled up with -1.
        middles: (B, L), float: where the middle of each sign is, as a share of the line; nan where that isn't known.

    Returns:
        (B,), float32; 0 for lines of which it isn't known.
    """
    columns = outputs.shape[1]
    known = ((labels == OUTLIER) | ~middles.isnan()).all(dim=1)
    line, sign = ((labels != OUTLIER) & known[:, None]).nonzero(as_tuple=True)
    column = (middles[line, sign] * columns).long().clamp(0, columns - 1)
    signs = torch.full((len(labels), columns), BLANK, device=outputs.device)
    signs[line, column] = labels[line, sign] + 1
    stands = (signs != BLANK).float()
    beside = F.max_pool1d(stands[:, None], 3, stride=1, padding=1)[:, 0] - stands
    weights = (stands + BLANK_WEIGHT * (1 - stands - beside)) * known[:, None]
    return (F.cross_entropy(outputs.float().transpose(1, 2), signs, reduction="none") * weights).sum(dim=1)


def read_texts(outputs: Tensor) -> list[list[int]]:
    """The likeliest text of each line: (B, T, K + 1) scores, or logarithms of probabilities, -> B lists of labels."""
    return [likeliest_texts(columns)[0] for columns in outputs.float().softmax(dim=2).cpu().numpy()]


def read_best_paths(outputs: Tensor) -> list[list[int]]:
    """What the best signs of each line's columns spell, which is sooner found: (B, T, K + 1) -> B lists of labels."""
    return collapse(outputs.argmax(dim=2).cpu().numpy())


def as_lists(labels: Tensor) -> list[list[int]]:
    """(B, L) labels, filled up with -1 -> B lists without."""
    return [[label for label in line if label != OUTLIER] for line in labels.tolist()]


def sign_accuracy(read: Sequence[Sequence[object]], texts: Sequence[Sequence[object]]) -> float:
    """One less the edit distance of what was read from the texts, as a share of their length; nan without any.

    Below 0 where more is read than there is.
    """
    return 1 - word_error_rate(_as_words(read), _as_words(texts)).item()


def _as_words(texts: Sequence[Sequence[object]]) -> list[str]:
    return [" ".join(map(str, text)) for text in texts]


class TextAccuracy(MeanMetric):
    """The share of the lines that are read without a mistake.

    Args:
        read: How they are read.
    """

    def __init__(self, read: Callable[[Tensor], list[list[int]]] = read_texts) -> None:
        super().__init__()
        self.read = read

    def update(self, outputs: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """Count (B, T, K + 1) outputs and (B, L) labels."""
        pairs = zip(self.read(outputs), as_lists(labels), strict=True)
        super().update(torch.tensor([float(read == text) for read, text in pairs], device=outputs.device))


class SignAccuracy(WordErrorRate):
    """What ``sign_accuracy`` is, of all batches."""

    higher_is_better = True

    def update(self, outputs: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """Count (B, T, K + 1) outputs and (B, L) labels."""
        super().update(_as_words(read_texts(outputs)), _as_words(as_lists(labels)))

    def compute(self) -> Tensor:
        """At most 1."""
        return 1 - super().compute()


class ReadingCalibration(Temperature):
    """What turns a trained reader's outputs into confidence; without effect until it is fitted."""

    def fit(self, outputs: list[Tensor], labels: list[Tensor]) -> None:
        """Choose the temperature by which the right texts of validation lines are the likeliest.

        Args:
            outputs: Batches of (B, T, K + 1), float32.
            labels: Batches of (B, L), int64.
        """
        tried = torch.logspace(-0.5, 0.7, 49)
        losses = [
            sum(ctc_losses(part / one, texts).sum().item() for part, texts in zip(outputs, labels, strict=True))
            for one in tried
        ]
        self.temperature.fill_(tried[losses.index(min(losses))])
