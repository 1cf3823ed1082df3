"""Average the weights of the last steps, also in a short run."""

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class WarmupEMAWeightAveraging(WeightAveraging):
    """Score and keep an exponential moving average of the weights, over no more than a tenth or so of all steps.

    Of Lightning's average with decay 0.99, more than a third is what a run of 100 steps began with: the network of a
    small folder would hardly be trained. Here the decay after ``t`` steps is ``min(decay, (1 + t) / (10 + t))``, as in
    https://www.tensorflow.org/api_docs/python/tf/train/ExponentialMovingAverage.

    Args:
        decay: How much of the average a step keeps, once the run is long enough, in [0, 1].

    Raises:
        ValueError: ``decay`` is not in [0, 1].
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        super().__init__(multi_avg_fn=self._average)
        self._decay = decay
        self._step = 0  # known here, not asked of the device, which would be waited for

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Say yes after each step."""
        if step_idx is None:
            return False
        self._step = step_idx
        return True

    @torch.no_grad()
    def _average(self, average: list[Tensor], current: list[Tensor], _: Tensor | int) -> None:
        """Move ``average``, tensors of one dtype, towards ``current``, of the Trainer's precision, in place."""
        if average[0].is_floating_point():
            weight = 1 - min(self._decay, (1 + self._step) / (10 + self._step))
            torch._foreach_lerp_(average, [tensor.to(average[0].dtype) for tensor in current], weight)
        else:
            torch._foreach_copy_(average, current)  # BatchNorm's counts of batches
