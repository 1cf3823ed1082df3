"""How far confidence can be believed, and whether an image shows one of the classes at all."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_calibration_error as torchmetrics_error
from torchmetrics.functional.classification import multiclass_calibration_error

BINS = 15
REFUSED = 0.008  # share of the validation images that are taken for none of the classes; of others no more than 1 %
CALIBRATION = "calibration."  # what the names of its tensors begin with in a classifier's state


class Temperature(nn.Module):
    """Temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599); without effect until it is fitted.

    Attributes:
        temperature: (), float32: what outputs are divided by before softmax.
    """

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))


class Calibration(Temperature):
    """What turns a trained network's class scores into what is said of an image; without effect until it is fitted.

    Attributes:
        temperature: (), float32: what the scores are divided by before softmax (Guo et al. 2017).
        limit: (), float32: the energy score that 0.8 % of the validation images lie below, which show none of the
            classes then (Liu et al. 2020, https://arxiv.org/abs/2010.03759); the least number until it is fitted.
    """

    limit: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("limit", torch.tensor(torch.finfo(torch.float32).min))

    def probabilities(self, logits: Tensor) -> Tensor:
        """(B, K) class scores -> (B, K), float32: class probabilities."""
        return (logits.float() / self.temperature).softmax(dim=1)

    def familiarity(self, logits: Tensor) -> Tensor:
        """(B, K) class scores -> (B,), float32 in [0, 1]: below 0.5 shows none of the classes; 1 until fitted."""
        return (logits.float().logsumexp(dim=1) - self.limit).sigmoid()

    def fit(self, logits: Tensor, labels: Tensor) -> None:
        """Fit it to validation images.

        Args:
            logits: (N, K), float32.
            labels: (N,), int64.
        """
        self.temperature.fill_(fit_temperature(logits, labels))
        self.limit.fill_(logits.logsumexp(dim=1).quantile(REFUSED, interpolation="lower"))


def with_calibration(state: Mapping[str, Tensor], default: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A classifier's state as it is now, also one from before it had a calibration, or one of temperature alone."""
    kept = {(f"{CALIBRATION}temperature" if name == "temperature" else name): value for name, value in state.items()}
    return {**{name: value for name, value in default.items() if name.startswith(CALIBRATION)}, **kept}


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


def binary_calibration_error(confidence: Tensor, right: Tensor) -> float:
    """The same of (N,) confidences, in [0, 1], and whether each was right, (N,), bool."""
    return torchmetrics_error(confidence, right.long(), n_bins=BINS, norm="l1").item()


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that scores are divided by for the least cross-entropy (Guo et al. 2017).

    Args:
        logits: (N, K), float.
        labels: (N,), int64.

    Returns:
        A temperature in [0.05, 20]: the bounds matter where no image is classified wrong, since confidence could
        then grow without end.
    """
    logits, labels = logits.double().clone(), labels.clone()  # those of inference mode know no gradient
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits / log_temperature.exp(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return log_temperature.exp().clamp(0.05, 20).item()
