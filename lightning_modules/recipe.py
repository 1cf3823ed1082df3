"""How a network is trained: optimiser, learning rate and its schedule."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from datamodules.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """A recipe for training; each network has its own default.

    Attributes:
        learning_rate: Peak learning rate.
        weight_decay: Weight decay of kernels and weight matrices; biases and norms don't decay.
        label_smoothing: Share of the target that is spread over all classes, in [0, 1).
        optimizer: ``sgd`` with Nesterov momentum 0.9, or ``adamw`` (Loshchilov & Hutter 2019,
            https://arxiv.org/abs/1711.05101), which without weight decay is Adam, or ``muon`` (Jordan et al. 2024,
            https://kellerjordan.github.io/posts/muon/; timm's), which orthogonalises the updates of weight matrices
            and of kernels with several input channels; other parameters get those of AdamW with Nesterov momentum.
        schedule: ``one_cycle`` (Smith & Topin 2018, https://arxiv.org/abs/1708.07120) over the whole run, or
            ``constant``.
        channels_last: Memory format of the convolutions; null takes the faster one of the device.
        class_weights: What an image counts in the loss of a classifier, by its class: a number for each, ``auto`` for
            the inverse of how many training images the class has (1 on average over the images), null for 1.

    Raises:
        UserError: An attribute is out of its range.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    optimizer: Literal["sgd", "adamw", "muon"] = "adamw"
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    channels_last: bool | None = None
    class_weights: Literal["auto"] | list[float] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"weight_decay must be at least 0, got {self.weight_decay}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if isinstance(self.class_weights, list) and not all(0 < weight < math.inf for weight in self.class_weights):
            raise UserError(f"class_weights must be above 0, got {self.class_weights}")

    def build_optimizer(self, groups: list[dict[str, Any]], fused: bool) -> Optimizer:
        """The optimiser of some groups of parameters, as torch.optim takes them."""
        if self.optimizer == "sgd":
            return SGD(groups, momentum=0.9, nesterov=True, fused=fused)
        if self.optimizer == "muon":
            from timm.optim.muon import Muon  # here, since timm takes a while to import

            return Muon(groups, nesterov=True)
        return AdamW(groups, fused=fused)

    def build_schedule(self, optimizer: Optimizer, steps: int) -> LRScheduler | None:
        """The schedule of a run of so many steps, to be stepped with the optimiser; None if the rate is constant."""
        if self.schedule == "constant":
            return None
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=steps,
            pct_start=0.3 if steps == 4 else 0.25,  # a quarter of four steps is a rise of no length, divided by
            div_factor=10,
            final_div_factor=1000,
            cycle_momentum=False,
        )

    def memory_format(self, fastest: torch.memory_format) -> torch.memory_format:
        """The memory format of the convolutions, where the fastest of the device is known."""
        chosen = {True: torch.channels_last, False: torch.contiguous_format, None: fastest}
        return chosen[self.channels_last]
