"""Find a learning rate and a batch size before training."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning import LightningDataModule, Trainer
from lightning.pytorch.tuner.tuning import Tuner
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from datamodules.errors import UserError
from lightning_modules.network import Network
from lightning_modules.series import asks_for_series

STEPS = 100
LOWEST, HIGHEST = 1e-7, 10.0  # learning rates that are tried: SGD may take some that are above Lightning's 1
SKIPPED = 10  # of the first losses, which are averages of few
DECAY = 0.98  # of the running average, which is Lightning's

# How the Trainer that tunes differs from the one that trains: as many steps as it takes, however short an epoch is.
TRAINER = {
    "max_epochs": -1,
    "max_steps": STEPS,
    "max_time": None,
    "min_epochs": None,
    "min_steps": None,
    "check_val_every_n_epoch": 2**31,  # Lightning's Tuner would validate after each of the epochs
    "val_check_interval": None,
    "enable_model_summary": False,
}


@dataclass(frozen=True)
class RangeTest:
    """The loss as the learning rate grows from step to step (Smith 2017, https://arxiv.org/abs/1506.01186).

    Attributes:
        rates: Learning rates.
        losses: The training loss at each, a running average; not finite once it has diverged.
        suggestion: The learning rate at which the loss falls fastest for each tenfold, to three digits.
    """

    rates: list[float]
    losses: list[float]
    suggestion: float


def check_tunable(config: Any) -> None:
    """Refuse what can't be tuned, before anything is built.

    Args:
        config: That of ``fit``.

    Raises:
        UserError: The run leaves no config to write the result into, goes on from a checkpoint or trains several folds,
            or there is no such setting.
    """
    tune = f"--tune {config.tune}"
    if config.trainer.fast_dev_run or config.trainer.barebones:
        raise UserError(f"{tune}: a trial leaves no run folder to write what is found into; leave one of them out")
    if config.get("ckpt_path"):
        raise UserError(f"{tune}: a resumed run goes on with the settings it has; leave --tune or --ckpt_path out")
    arguments = config.data.get("init_args") or {}
    if several := asks_for_series(config):
        raise UserError(f"{tune}: the runs of {several} have one setting; tune a single run, as with --data.fold 1")
    if "batch_size" in config.tune and "batch_size" not in arguments:
        raise UserError(f"{tune}: {config.data.class_path} has no batch_size that could be set")
    if "lr" not in config.tune:
        return
    if not config.get("optimizer"):
        if "recipe" not in (config.model.get("init_args") or {}):
            raise UserError(f"{tune}: {config.model.class_path} has no recipe whose learning_rate could be set")
        return
    if "lr" not in config.optimizer.init_args:
        raise UserError(f"{tune}: {config.optimizer.class_path} has no lr that could be set")
    if config.get("lr_scheduler") and "max_lr" in config.lr_scheduler.init_args:
        raise UserError(f"{tune}: {config.lr_scheduler.class_path} has a max_lr of its own; leave one of them out")


def find_batch_size(trainer: Trainer, model: Network, data: LightningDataModule) -> int:
    """The largest batch that fits into memory, of 2, 4, 8, … images; no larger than the training set or 8,192.

    Args:
        trainer: As ``TRAINER`` says.
        model: Is trained for some steps.
        data: Its data.
    """
    data.prepare_data()
    data.setup("fit")
    most = min(len(data.train_dataloader().dataset), 8192)
    found = Tuner(trainer).scale_batch_size(model, datamodule=data, mode="power", max_val=most + 1)
    assert found is not None
    return found if found <= most else found // 2  # Lightning (2.6) returns the first one that it doesn't try


def find_learning_rate(trainer: Trainer, model: Network, data: LightningDataModule) -> RangeTest:
    """Let the learning rate grow until the network diverges, and choose by its loss.

    Where groups of parameters have learning rates of their own, they keep their ratios. Lightning's own suggestion is
    not used: it takes the slope by the rate itself, not by its logarithm, where the noise at the smallest rates
    outweighs all that is learnt at those that matter.

    Args:
        trainer: As ``TRAINER`` says.
        model: Is trained until it has diverged.
        data: Its data.

    Raises:
        UserError: The loss falls at no learning rate.
    """
    ratios = [group["lr"] / model.recipe.learning_rate for group in model.parameter_groups()]

    def keep_ratios(optimizer: Optimizer, *_: Any) -> None:
        if len(optimizer.param_groups) == len(ratios):  # or else it isn't the recipe's
            for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
                group["lr"] *= ratio  # for this step: the next rate is set anew

    model.may_diverge = True
    handle = register_optimizer_step_pre_hook(keep_ratios)
    try:
        finder = Tuner(trainer).lr_find(
            model, datamodule=data, min_lr=LOWEST, max_lr=HIGHEST, num_training=STEPS, update_attr=False
        )
    finally:
        handle.remove()
    assert finder is not None
    rates, losses = np.array(finder.results["lr"]), np.array(finder.results["loss"])
    count = np.arange(1, len(losses) + 1)
    losses *= (1 - DECAY ** (count + 1)) / (1 - DECAY**count)  # Lightning (2.6) counts one step too many
    useful = np.flatnonzero(np.isfinite(losses))[SKIPPED:-1]
    useful = useful[: np.argmin(losses[useful]) + 1] if len(useful) else useful  # later it only falls after a rise
    slopes = np.gradient(losses[useful], np.log10(rates[useful])) if len(useful) > 1 else np.zeros(1)
    if not slopes.min() < 0:
        raise UserError(
            f"--tune lr: the loss falls at no learning rate from {LOWEST:g} to {HIGHEST:g}; set "
            f"{model.learning_rate_option} yourself, and look at the data"
        )
    suggestion = float(f"{rates[useful][slopes.argmin()]:.3g}")
    return RangeTest(rates.tolist(), losses.tolist(), suggestion)


def set_learning_rate(config: Any, rate: float) -> None:
    """Set the learning rate of a run; that of a backbone keeps its ratio.

    Args:
        config: That of ``fit``, which is changed.
        rate: For the recipe, or for the optimiser that is chosen in its place.
    """
    if config.get("optimizer"):
        config.optimizer.init_args.lr = rate
        return
    arguments = config.model.init_args
    if "backbone_learning_rate" in arguments:
        ratio = arguments.backbone_learning_rate / arguments.recipe.learning_rate
        arguments.backbone_learning_rate = float(f"{rate * ratio:.3g}")
    arguments.recipe.learning_rate = rate
