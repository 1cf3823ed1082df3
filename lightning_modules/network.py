"""What all networks share: how they are built, trained, scored, kept and resumed."""

import inspect
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics import MetricCollection

from datamodules.base import run_seed
from datamodules.dataset import Batch, as_batch
from datamodules.errors import UserError
from datamodules.imports import class_path
from lightning_modules.calibration import CALIBRATION, Temperature, with_calibration
from lightning_modules.exported import PROBABILITIES
from lightning_modules.hardware import fastest_memory_format, full_precision, keep_freed_memory
from lightning_modules.recipe import Recipe
from lightning_modules.weights import first_mismatch

# What an optimiser and its schedule go on with when a run is resumed, whatever the new run says.
KEPT = ("optimizer", "schedule", "learning_rate", "backbone_learning_rate", "weight_decay")


def flat_recipe(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters with those of the recipe among them."""
    return {**hparams, **hparams.get("recipe", {})}


class DivergedError(UserError):
    """The loss or the weights are no longer finite."""


class Network(LightningModule):
    """A network that reads images: a subclass gives ``forward``, ``loss``, metrics and a calibration.

    What a subclass is constructed with is kept as its hyper-parameters: a checkpoint says how to build it again.

    Args:
        class_names: Names of the classes, in the order of the outputs.
        in_channels: Channels of the data: 1 for grey, 3 for colour.
        image_size: Height of the images that the datamodule yields, in pixels.
        recipe: How it is trained.

    Attributes:
        calibration: What turns outputs into probabilities; fitted when ``fit`` ends.
        train_metrics: Of outputs and labels, with ``train_accuracy`` among them.
        val_metrics: The same for validation.
        test_metrics: The same for the test set.
        may_diverge: Whether training goes on with a loss that is not finite, as a range test of the learning rate does.
    """

    calibration: Temperature
    train_metrics: MetricCollection
    val_metrics: MetricCollection
    test_metrics: MetricCollection

    def __init__(self, class_names: list[str], in_channels: int, image_size: int, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.optimizer_init: dict[str, Any] | None = None  # chosen on the command line, in place of the recipe's
        self.may_diverge = False
        self.save_hyperparameters(logger=False)
        taken = inspect.signature(type(self)).parameters
        for name in self.hparams.keys() - taken.keys():
            del self.hparams[name]
        if "recipe" in self.hparams:
            self.hparams["recipe"] = asdict(recipe)
        self.class_names = list(class_names)
        self.in_channels = in_channels
        self.image_size = image_size

    def check_data(self, data: LightningDataModule) -> None:
        """Refuse data that the network can't learn from, before they are loaded.

        Raises:
            UserError: They are of another kind.
        """

    def probabilities(self, images: Tensor) -> Tensor:
        """Images, uint8 or float in [0, 1] -> float32: calibrated probabilities, along the last axis."""
        raise NotImplementedError

    def answers(self, images: Tensor) -> dict[str, Tensor]:
        """What an exported ONNX program gives, by the names of its outputs, from images as ``probabilities`` takes."""
        return {PROBABILITIES: self.probabilities(images)}

    def judged(self, outputs: Tensor) -> Tensor:
        """What validation and test metrics take for the outputs: these, if calibration doesn't change the answer."""
        return outputs

    def forward_batch(self, batch: Batch) -> Tensor:
        """What ``forward`` gives for the images of a batch."""
        outputs: Tensor = self(batch.images)
        return outputs

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """What is trained on: the mean over a batch."""
        raise NotImplementedError

    def training_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """What a step of training makes smaller: the loss, and what else the batch of a subclass says."""
        return self.loss(outputs, batch.labels)

    def reported_loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """What is reported: the same, but without smoothing."""
        return self.loss(outputs, labels)

    def use_memory_format(self, device: torch.device) -> None:
        """Lay the weights out as is fastest on a device, or as the recipe says, and memory too."""
        if device.type == "cpu":
            keep_freed_memory()
        self.to(memory_format=self.recipe.memory_format(fastest_memory_format(device)))

    def setup(self, stage: str) -> None:
        """Lay the weights out for the device at hand."""
        self.use_memory_format(self.trainer.strategy.root_device)

    def on_fit_start(self) -> None:
        """Let no run begin whose checkpoints couldn't be read.

        Raises:
            UserError: A constructor's argument is not a plain value.
        """
        for name, value in self.hparams.items():
            if not _is_plain(value):
                raise UserError(
                    f"{type(self).__name__}: the argument {name} is a {type(value).__name__}; a checkpoint keeps plain "
                    "values alone (text, numbers, lists and dictionaries of them)"
                )

    def on_train_epoch_start(self) -> None:
        """Start each epoch from its own random state, so that a resumed run goes on as the uninterrupted one."""
        state = np.random.SeedSequence([run_seed(), self.current_epoch, self.global_rank]).generate_state(1, np.uint64)
        torch.manual_seed(int(state[0]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch; logs loss and accuracy as seen in training, augmented.

        Raises:
            DivergedError: The loss is not finite.
        """
        batch = as_batch(batch)
        outputs = self.forward_batch(batch)
        loss = self.training_loss(outputs, batch)
        if not (torch.isfinite(loss) or self.may_diverge):
            raise self._diverged(f"the training loss is {loss.item()} in step {batch_idx + 1}")
        self.train_metrics.update(outputs.detach(), batch.labels)  # called, it would compute each batch's accuracy, too
        reported = self.reported_loss(outputs.detach(), batch.labels)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(batch.labels)}
        self.log("train_loss", reported, sync_dist=True, **options)
        self.log_dict(self.train_metrics, prog_bar=True, **options)
        return loss

    def on_train_epoch_end(self) -> None:
        """Let no checkpoint be written of a network that has diverged.

        Raises:
            DivergedError: The validation loss or a weight is not finite.
        """
        if self.may_diverge:
            return
        val_loss = self.trainer.callback_metrics.get("val_loss")
        if val_loss is not None and not torch.isfinite(val_loss):
            raise self._diverged(f"the validation loss is {val_loss.item()} after the last step")
        if not all(parameter.isfinite().all() for parameter in self.parameters()):
            raise self._diverged("a weight is not finite after the last step")

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"training has diverged: {what} of epoch {self.current_epoch + 1}; checkpoints are kept of the epochs "
            f"before. Lower {self.learning_rate_option}, or clip the gradients with --trainer.gradient_clip_val"
        )

    @property
    def learning_rate_option(self) -> str:
        """The option that sets the rate at which it is trained."""
        return "--model.recipe.learning_rate" if self.optimizer_init is None else "--optimizer.lr"

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of the validation set."""
        self._score("val", self.val_metrics, batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Score a batch of the test set, also class by class."""
        self._score("test", self.test_metrics, batch)

    def _score(self, subset: str, metrics: MetricCollection, batch: Batch) -> None:
        batch = as_batch(batch)
        with self.scoring():
            outputs = self.forward_batch(batch)
            losses = {
                f"{subset}_loss": self.reported_loss(outputs, batch.labels),
                f"{subset}_objective": self.loss(outputs, batch.labels),
            }
        metrics.update(self.judged(outputs), batch.labels)
        self.log_dict(losses, on_epoch=True, batch_size=len(batch.labels), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the validation accuracy, over all processes."""
        self._log_metrics(self.val_metrics, prog_bar=True)

    def on_test_epoch_end(self) -> None:
        """Log the test accuracy, over all processes, also class by class."""
        self._log_metrics(self.test_metrics, prog_bar=False)

    def _log_metrics(self, metrics: MetricCollection, prog_bar: bool) -> None:
        # By hand, since Lightning (2.6) can't log a collection with a classwise metric in it.
        self.log_dict(metrics.compute(), prog_bar=prog_bar, sync_dist=True)
        metrics.reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Indices (B,) and outputs (B, …), float32, of a batch."""
        with self.scoring():
            return batch.indices, self(batch.images).float()

    def scoring(self) -> AbstractContextManager[None]:
        """The precision to score in: full in a run that trains; else the Trainer's, which is full by default."""
        if self.trainer.state.fn == TrainerFn.FITTING or self.trainer.precision == "32-true":
            return full_precision(self.device)
        return nullcontext()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser and, unless the learning rate is constant, its schedule.

        Raises:
            UserError: There is nothing to train, or a one-cycle schedule of a run without an end.
        """
        steps = self.planned_steps()
        # Fused is faster, but Lightning can't clip the gradients of a fused optimiser in mixed precision.
        fused = not self.trainer.gradient_clip_val
        optimizer = self.recipe.build_optimizer(self.parameter_groups(), fused)
        schedule = self.recipe.build_schedule(optimizer, steps)
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def planned_steps(self) -> int:
        """Optimiser steps of the whole run; 0 where the learning rate is constant and the run has no end.

        Raises:
            UserError: There are none, or a one-cycle schedule can't know how many there will be.
        """
        steps = 0 if self.trainer.limit_train_batches == 0 else self.trainer.estimated_stepping_batches
        if steps in (0, -1, math.inf):
            if steps == 0:
                raise UserError("there is nothing to train: --trainer.limit_train_batches or max_steps leaves no step")
            if self.recipe.schedule == "one_cycle":
                raise UserError(
                    "a one-cycle schedule follows from the length of the run, which has no end: give "
                    "--trainer.max_epochs N, which --trainer.max_time may cut short, or --model.recipe.schedule "
                    "constant"
                )
            return 0
        return int(steps)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimiser: those that decay, and those that don't."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {
                "params": [parameter for parameter in trained if parameter.ndim > 1],
                "lr": self.recipe.learning_rate,
                "weight_decay": self.recipe.weight_decay,
            },
            {
                "params": [parameter for parameter in trained if parameter.ndim <= 1],
                "lr": self.recipe.learning_rate,
                "weight_decay": 0.0,
            },
        ]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights.

        Raises:
            UserError: They are those of another network.
        """
        try:
            return super().load_state_dict(with_calibration(state_dict, self.state_dict()), strict, assign)
        except RuntimeError as error:
            raise UserError(f"the weights don't fit this {type(self).__name__}: {first_mismatch(error)}") from error

    def start_from(self, state: Mapping[str, Tensor], source: str) -> None:
        """Load the weights to start from; where they tell other classes apart, the head stays new, and that is said.

        Args:
            state: A state dict of this network.
            source: Where it comes from, for what is said.

        Raises:
            UserError: They are those of another network.
        """
        own = self.state_dict()
        kept = {name: value for name, value in with_calibration(state, own).items() if not name.startswith(CALIBRATION)}
        if any(
            name.startswith("head.") and own[name].shape[:1] != kept[name].shape[:1]
            for name in own.keys() & kept.keys()
        ):
            rank_zero_info(f"{source}: the weights tell other classes apart; those of the head are new.")
            kept = {name: value for name, value in kept.items() if not name.startswith("head.")}
        heads = {name: value for name, value in own.items() if name.startswith(("head.", CALIBRATION))}
        try:
            super().load_state_dict({**heads, **kept})
        except RuntimeError as error:
            raise UserError(f"{source}: not the weights of a {type(self).__name__}: {first_mismatch(error)}") from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note which classes made the checkpoint, so that it can be read without a config."""
        checkpoint["model_class"] = class_path(type(self))
        checkpoint["hyper_parameters"] = dict(self.hparams)
        if "weights" in self.hparams:  # those to start from are those in the checkpoint now
            checkpoint["hyper_parameters"]["weights"] = None
        if self.optimizer_init is not None:
            checkpoint["optimizer_init"] = self.optimizer_init
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            checkpoint["data_class"] = class_path(type(datamodule))
            checkpoint.pop(datamodule.CHECKPOINT_HYPER_PARAMS_KEY, None)  # Lightning's own copy, plain or not
            if _is_plain(dict(datamodule.hparams)):
                checkpoint["data_hparams"] = dict(datamodule.hparams)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint tells the same classes apart as the data have.

        Raises:
            UserError: It doesn't; or a run is resumed with another optimiser, learning rate or schedule.
        """
        trained = checkpoint.get("hyper_parameters", {}).get("class_names", self.class_names)
        if trained != self.class_names:
            raise UserError(
                f"the checkpoint was trained on the classes {', '.join(trained)}, "
                f"but the data have {', '.join(self.class_names)}"
            )
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            own = self.state_dict()  # what was fitted to the weights of the checkpoint doesn't fit those to come
            state = with_calibration(checkpoint["state_dict"], own)
            state |= {name: value for name, value in own.items() if name.startswith(CALIBRATION)}
            checkpoint["state_dict"] = state
            if checkpoint.get("optimizer_init") != self.optimizer_init:
                raise UserError(
                    f"the checkpoint was trained with {_options(checkpoint.get('optimizer_init'))}, by which a resumed "
                    f"run goes on, but this run has {_options(self.optimizer_init)}: give the same, or start a new run"
                )
            before, now = (flat_recipe(hparams) for hparams in (checkpoint["hyper_parameters"], self.hparams))
            for name in KEPT if self.optimizer_init is None else ():
                if before.get(name) != now.get(name):
                    raise UserError(
                        f"the checkpoint was trained with {name} {before.get(name)}, by which a resumed run goes on, "
                        f"but this run has {now.get(name)}: give the same one, or start a new run"
                    )
            planned = [state["total_steps"] for state in checkpoint["lr_schedulers"] if "total_steps" in state]
            if self.optimizer_init is not None:
                return
            steps = self.planned_steps()
            if planned and self.recipe.schedule == "one_cycle" and planned != [steps]:  # a subclass may have none
                raise UserError(
                    f"the checkpoint is on the way along a one-cycle schedule of {planned[0]} steps, but this run has "
                    f"{steps}: resume with the same --trainer.max_epochs and batches, or start a new run"
                )


def _options(optimizer_init: dict[str, Any] | None) -> str:
    """An optimiser and schedule as they are given on the command line."""
    if optimizer_init is None:
        return "the recipe's optimiser"
    return " ".join(f"--{name} {init}" for name, init in optimizer_init.items())


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint that is read without running anything may hold a value."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)
