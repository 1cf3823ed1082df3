"""Search for settings: ``python -m lightning_modules.sweep --config FILE --space space.yaml --trials 20``."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from datamodules.commands import add_import_option
from datamodules.errors import UserError, exit_status, mistake_behind
from datamodules.figures import save_figure
from datamodules.imports import import_modules
from datamodules.text import as_table, short_name
from lightning_modules.callbacks.checkpoints import HIGHER_IS_BETTER, BestCheckpoint
from lightning_modules.cli import (
    DigitDoodleCLI,
    TrainerError,
    changed_settings,
    check_one_process,
    ignored_warnings,
    without_enums,
)
from lightning_modules.network import DivergedError
from lightning_modules.series import asks_for_series

if TYPE_CHECKING:
    from optuna.trial import Trial

    from lightning_modules.search_space import Space
    from lightning_modules.trials import Sweep

SHOWN = 10  # of the trials


class FitSettings(DigitDoodleCLI):
    """Reads the options of ``fit``, and does nothing with them."""

    def before_instantiate_classes(self) -> None:
        """Nothing is checked."""

    def instantiate_classes(self) -> None:
        """Nothing is built."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing is run."""

    @property
    def plain(self) -> dict[str, Any]:
        """All settings in plain values, as ``config.yaml`` has them."""
        settings: dict[str, Any] = yaml.safe_load(
            self._parser("fit").dump(without_enums(self.config.fit), skip_none=False)
        )
        return settings


class FitTrial(DigitDoodleCLI):
    """Trains a trial."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, which may start no further processes: they would begin sweeps of their own."""
        trainer = super().instantiate_trainer(**kwargs)
        check_one_process(trainer, "each trial of a sweep")
        return trainer


def check_settings(config: Any) -> None:
    """Refuse settings of ``fit`` that a trial can't have.

    Raises:
        UserError: Which, and why.
    """
    if config.ckpt_path:
        raise UserError("--ckpt_path: each trial starts from nothing, and a sweep goes on by the same command again")
    if config.monitor == "epoch":
        raise UserError("--monitor epoch: no trial would be better than another; name a metric")
    if config.tune:
        raise UserError("--tune: a sweep searches for these itself; leave it out, or tune without a sweep")
    if config.trainer.fast_dev_run or config.trainer.barebones:
        raise UserError("a trial run leaves no result, which a sweep compares: leave trainer.fast_dev_run out")
    if several := asks_for_series(config):
        raise UserError(f"a sweep compares single runs, not those of {several}; --data.fold 1 is one")


def search(space: "Space", count: int, args: list[str]) -> str:
    """Train so many trials, with other processes that do the same, and those that are left of an earlier command.

    Args:
        space: What is searched.
        count: How many there are of all processes.
        args: Options of ``fit``.

    Returns:
        The result, for people.

    Raises:
        UserError: The options don't suit a sweep, or the folder holds one that began with others, or no trial can be
            trained so.
    """
    from optuna.distributions import distribution_to_json

    from lightning_modules.search_space import as_options, example
    from lightning_modules.trials import Sweep

    fit = FitSettings(["fit", *args, *as_options(example(space))])
    config, settings = fit.config.fit, fit.plain
    check_settings(config)
    sweep = Sweep(
        Path(config.trainer.default_root_dir) / (config.name or "sweep"),
        space,
        "maximize" if config.monitor in HIGHER_IS_BETTER else "minimize",
        seed=int(config.seed_everything or 0),
        # A one-cycle schedule takes a quarter of the run to rise: until then the best are not yet the best.
        warmup=max(1, (config.trainer.max_epochs or 0) // 4),
    )
    ours = {name: json.loads(distribution_to_json(values)) for name, values in space.items()}
    began = sweep.agree({"space": ours, "fit": settings})
    changed = changed_settings(began["fit"], settings) + (["the space"] if began["space"] != ours else [])
    if changed:
        raise UserError(
            f"{sweep.folder}: began with other settings: {', '.join(changed)}; leave them, or name another folder with "
            "--name"
        )
    try:
        while True:
            sweep.write()
            with sweep.next_trial(count) as trial:
                if trial is None:
                    break
                train(sweep, trial, config.monitor, args)
    except BaseException:
        sweep.discard()
        if sweep.folder.exists():
            rank_zero_info("To go on: the same command again.")
        raise
    save_figure(plot_sweep(sweep, config.monitor), sweep.folder / "sweep.png")
    return describe(sweep)


def train(sweep: "Sweep", trial: "Trial", monitor: str, args: list[str]) -> None:
    """Train a trial, from its last checkpoint if it has one, and note how it ended.

    Raises:
        UserError: No trial can be trained so.
    """
    import optuna

    from lightning_modules.callbacks.pruning import Pruning
    from lightning_modules.search_space import as_options

    run, options = sweep.run(trial), as_options(trial.params)
    rank_zero_info(f"{run.folder}: {' '.join(options)}")
    try:
        cli = FitTrial(["fit", *args, *options], into=run, callbacks=[Pruning(trial, monitor)])
    except optuna.TrialPruned:
        sweep.give_up(trial)
    except DivergedError:
        sweep.give_up(trial, "diverged")
    except torch.OutOfMemoryError:
        sweep.give_up(trial, "out of memory")
    except Exception as error:
        mistake = mistake_behind(error)
        tried = isinstance(error, TrainerError) and any(name.startswith("trainer.") for name in sweep.space)
        of_machine = isinstance(error.__cause__ or error, OSError) or (isinstance(error, TrainerError) and not tried)
        if mistake is None or of_machine or run.config.exists() or not sweep.finished():
            raise
        rank_zero_info(f"{run.folder}: {mistake}")  # before it began, where another trial could be trained
        sweep.give_up(trial, "impossible")
    else:
        scores = [c.best_model_score for c in cli.trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)]
        if cli.report is None or cli.report.summary is None or not scores or scores[0] is None:
            raise UserError("a trial has no result: nothing was validated, or no checkpoint was kept")
        sweep.complete(trial, scores[0].item(), cli.report.summary["seconds"])


def plot_sweep(sweep: "Sweep", monitor: str) -> Figure:
    """The value of each trial, by its number and by each setting; hollow where it was given up."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    finished = sweep.finished()
    panels = ["trial", *sweep.space]
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    for place, name in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        values = sweep.space.get(name)
        for trial in reversed(finished):  # the best on top
            if trial.value is None:  # it was given up at once
                continue
            x = sweep.number(trial) if values is None else trial.params[name]
            if isinstance(values, CategoricalDistribution):
                x = values.choices.index(x)
            given_up = trial.state.name == "PRUNED"
            colour = "tab:red" if trial is finished[0] and not given_up else "tab:blue"
            axes.plot(x, trial.value, "o", color=colour, mfc="none" if given_up else colour, alpha=0.7)
        if isinstance(values, CategoricalDistribution):
            labels = [short_name(str(choice), 14) for choice in values.choices]
            axes.set_xticks(range(len(labels)), labels, parse_math=False)
        elif values is not None and values.log:  # type: ignore[attr-defined]
            axes.set_xscale("log")
            axes.set_xlim(values.low * 0.8, values.high * 1.25)  # type: ignore[attr-defined]  # trials may lie close
        elif not isinstance(values, FloatDistribution):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(short_name(name, 36), parse_math=False)
        axes.set_ylabel(monitor if place % columns == 0 else "")
        axes.grid(alpha=0.3)
    figure.suptitle("Trials (hollow: given up, red: the best)")
    return figure


def describe(sweep: "Sweep") -> str:
    """The best trials, and how all of them ended.

    Raises:
        UserError: None came to its end.
    """
    finished = sweep.finished()
    if not finished or finished[0].state.name != "COMPLETE":
        raise UserError(f"{sweep.table}: no trial came to its end; narrow the space, and name another --name")
    rows = [[*map(_shown, sweep.row(trial))] for trial in finished[:SHOWN]]
    states = Counter(str(sweep.row(trial)[1]) for trial in finished)
    facts = {
        "trials": ", ".join(f"{count} {state}" for state, count in states.items()),
        "best": f"{_shown(finished[0].value)} ({sweep.row(finished[0])[0]})",
        "its settings": sweep.best,
        "folder": sweep.folder,
    }
    at_work = len(sweep.trials()) - len(finished)
    facts |= {"still at work": f"{at_work} of other processes"} if at_work else {}
    return f"{as_table([sweep.columns(), *rows])}\n\n{as_table(facts.items())}"


def _shown(cell: Any) -> Any:
    return f"{cell:.4g}" if isinstance(cell, float) else cell


def main(args: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lightning_modules.sweep",
        description="Train with settings that Optuna chooses, and keep the best. All other options are those of "
        "`python -m lightning_modules fit`. The same command again goes on; several at once share the trials.",
        allow_abbrev=False,
    )
    parser.add_argument("--space", type=Path, required=True, help="what is searched, by option of fit: a YAML file")
    parser.add_argument("--trials", type=int, default=20, help="how many, of all processes together (%(default)s)")
    add_import_option(parser)

    def command() -> None:
        given = import_modules(sys.argv[1:] if args is None else args, ("--model", "--data"))
        options, fit = parser.parse_known_args(given)
        if options.trials < 1:
            raise UserError(f"--trials must be at least 1, got {options.trials}")
        try:
            from lightning_modules.search_space import read_space
        except ModuleNotFoundError as error:
            raise UserError(f'a sweep needs {error.name}: pip install ".[sweep]" in the clone') from error
        with ignored_warnings():
            print(search(read_space(options.space), options.trials, fit))

    return exit_status(command)
