"""How far confidence can be believed, and the temperature that corrects it."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

BINS = 15


def expected_calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """Mean distance of confidence from accuracy, over 15 bins of confidence (Guo et al. 2017).

    Args:
        probabilities: (N, K), float.
        labels: (N,), int64.

    Returns:
        The error in [0, 1]; see https://arxiv.org/abs/1706.04599.
    """
    classes = probabilities.shape[1]
    return multiclass_calibration_error(probabilities, labels, classes, n_bins=BINS, norm="l1").item()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that scores are divided by for the least cross-entropy (Guo et al. 2017).

    Args:
        logits: (N, K), float.
        labels: (N,), int64.

    Returns:
        A temperature in [0.05, 20]: the bounds matter where no image is classified wrong, since confidence could
        then grow without end.
    """
    logits = logits.double()
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return log_temperature.exp().clamp(0.05, 20).item()
