"""What columns spell by connectionist temporal classification (Graves et al. 2006), once a network has run.

A text is read from columns by leaving repetitions out, and then blanks; see https://doi.org/10.1145/1143844.1143891.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from datamodules.text import as_text

BLANK = 0

Columns = npt.NDArray[np.float32]  # (T, K + 1): probabilities of the blank and of each sign


def collapse(best: npt.NDArray[np.int64]) -> list[list[int]]:
    """The labels along each line, from the best sign of each column: (B, T) -> B lists."""
    before = np.pad(best, ((0, 0), (1, 0)), constant_values=BLANK)[:, :-1]
    begins = (best != before) & (best != BLANK)
    return [(line[starts] - 1).tolist() for line, starts in zip(best, begins, strict=True)]


def likeliest_texts(columns: Columns, width: int = 8, least: float = 1e-3) -> list[list[int]]:
    """The likeliest texts of a line, by prefix beam search (Hannun et al. 2014, https://arxiv.org/abs/1408.2873).

    A text's probability is the sum over all ways to read it, so that it may be another one than the best signs of the
    columns spell: of the amounts on cheques that ``benchmarks reading`` measures, 0.7 % more are right.

    Args:
        columns: (T, K + 1), float32: probabilities of the blank and of each sign.
        width: How many prefixes are kept from column to column.
        least: What is less likely than this share of the likeliest prefix is not kept.

    Returns:
        At least one, and at most ``width``, as rows of ``class_names``; the likeliest first.
    """
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (1.0, 0.0)}  # ends in a blank, ends in a sign
    for column in columns.tolist():
        likely = [(label, share) for label, share in enumerate(column[1:]) if share > 1e-4]
        grown: dict[tuple[int, ...], list[float]] = {}
        for prefix, (blank, sign) in beams.items():
            here = grown.setdefault(prefix, [0.0, 0.0])
            here[0] += (blank + sign) * column[BLANK]
            if prefix:
                here[1] += sign * column[prefix[-1] + 1]
            for label, share in likely:
                before = blank if prefix and prefix[-1] == label else blank + sign
                grown.setdefault((*prefix, label), [0.0, 0.0])[1] += before * share
        best = sorted(grown.items(), key=lambda item: -sum(item[1]))[:width]
        most = sum(best[0][1])  # which a long line would make as small as numbers get
        beams = {prefix: (blank / most, sign / most) for prefix, (blank, sign) in best if blank + sign >= least * most}
    return [list(prefix) for prefix in beams]


def match_text(columns: Columns, pattern: re.Pattern[str], class_names: list[str]) -> list[int]:
    """The likeliest text of a line that a pattern matches.

    Args:
        columns: (T, K + 1), float32: probabilities of the blank and of each sign.
        pattern: What the whole text must match.
        class_names: The signs.

    Returns:
        Rows of ``class_names``; empty where none of the 64 likeliest texts matches.
    """
    for text in likeliest_texts(columns, width=64, least=0):
        if pattern.fullmatch(as_text(text, class_names)):
            return text
    return []


def text_probability(columns: Columns, labels: Sequence[int]) -> float:
    """How likely a text is: the sum over all ways to read it, by the forward algorithm of Graves et al., 4.1.

    Args:
        columns: (T, K + 1), float32: probabilities of the blank and of each sign.
        labels: Rows of ``class_names``.
    """
    signs = np.full(2 * len(labels) + 1, BLANK)
    signs[1::2] = np.array(labels, dtype=np.int64) + 1
    jumps = np.zeros(len(signs))  # 1 where the blank between two signs may be left out
    jumps[1::2] = [before != label for before, label in zip([None, *labels], labels, strict=False)]
    reached = np.zeros(len(signs) + 2)  # each sign by the columns so far, after two places that lie before the first
    reached[1] = 1
    for column in columns.astype(np.float64):
        reached[2:] = (reached[2:] + reached[1:-1] + jumps * reached[:-2]) * column[signs]
        reached[1] = 0
    return float(reached[-1] + reached[-2])
