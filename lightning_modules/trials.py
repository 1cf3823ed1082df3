"""The trials of a sweep, which any number of processes share."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import yaml
from filelock import FileLock, Timeout
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from datamodules.errors import UserError
from datamodules.writing import atomic_write, write_csv
from lightning_modules.run import Run
from lightning_modules.search_space import Space

MOST_TRIES = 3  # of a trial whose process is killed: a network may be too large for the machine each time
# What a trial's attributes are called in the database.
NUMBER, TRIES, SECONDS, FAILURE = "number", "tries", "seconds", "failure"


class Sweep:
    """A folder with a run for each trial, ``trial_0``, ``trial_1``, …, and ``sweep.db``, in which Optuna keeps them.

    Settings are chosen by the tree-structured Parzen estimator (Bergstra et al. 2011,
    https://papers.nips.cc/paper/4443), by the seed and the trials before. From its sixth trial on, a sweep ends those
    that are worse than the median of the others at the same epoch.

    Args:
        folder: The folder, which is made where it isn't there.
        space: What is searched.
        direction: Whether more or less is better.
        seed: Of the choice.
        warmup: Epochs before which no trial is pruned.

    Raises:
        UserError: The folder holds a database that can't be read.
    """

    def __init__(
        self, folder: Path, space: Space, direction: Literal["maximize", "minimize"], seed: int, warmup: int
    ) -> None:
        self.folder = folder
        self.space = space
        self.seed = seed
        self.settings = folder / "sweep.yaml"
        self.table = folder / "trials.csv"
        self.best = folder / "best.yaml"
        self._lock_file = folder / ".sweep.lock"
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # what is done is said by fit
        database = folder / "sweep.db"
        with self._alone():
            try:
                self.study = optuna.create_study(
                    storage=RDBStorage(f"sqlite:///{database}", {"connect_args": {"timeout": 60}}),
                    study_name="sweep",
                    direction=direction,
                    pruner=MedianPruner(n_startup_trials=5, n_warmup_steps=warmup),
                    load_if_exists=True,
                )
            except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
                raise UserError(f"{database}: can't be read ({str(error).splitlines()[0]})") from error

    def agree(self, settings: dict[str, Any]) -> dict[str, Any]:
        """The settings that the sweep began with; those of the first process are kept in ``sweep.yaml``."""
        with self._alone():
            if not self.settings.exists():
                with atomic_write(self.settings, "w", encoding="utf-8") as file:
                    yaml.safe_dump(settings, file, sort_keys=False, allow_unicode=True)
            began: dict[str, Any] = yaml.safe_load(self.settings.read_text(encoding="utf-8"))
            return began

    @contextlib.contextmanager
    def next_trial(self, most: int) -> Iterator[Trial | None]:
        """A trial that no other process has; None where ``most`` of all processes are begun.

        A process that is killed leaves its trial to the next that asks.
        """
        with self._alone():
            self._take_over()
            trial = self._ask(most)
            held = contextlib.nullcontext() if trial is None else self._held(trial).acquire()
        try:
            with held:
                yield trial
        except BaseException:  # the process lives: it isn't the trial that ends it
            if trial is not None:
                trial.set_user_attr(TRIES, trial.user_attrs.get(TRIES, 1) - 1)
            raise
        if trial is not None:
            self._held_file(trial).unlink(missing_ok=True)

    def _ask(self, most: int) -> Trial | None:
        begun = self.trials()
        if len(begun) >= most and all(trial.state != TrialState.WAITING for trial in begun):
            return None
        # Optuna counts a trial that is tried again twice.
        number = len({trial.user_attrs[NUMBER] for trial in self.study.get_trials() if NUMBER in trial.user_attrs})
        # By a seed of its own: one for all would let each process, and each start, try the same again.
        seed = np.random.SeedSequence([self.seed, number]).generate_state(1)
        self.study.sampler = TPESampler(seed=int(seed[0]))
        trial = self.study.ask(self.space)
        if NUMBER not in trial.user_attrs:
            trial.set_user_attr(NUMBER, number)
        return trial

    def run(self, trial: Trial | FrozenTrial) -> Run:
        """The run of a trial."""
        return Run(self.folder / f"trial_{self.number(trial)}")

    def number(self, trial: Trial | FrozenTrial) -> int:
        """Of a trial, from 0, also where it is tried again."""
        return int(trial.user_attrs[NUMBER])

    def complete(self, trial: Trial, value: float, seconds: float) -> None:
        """Note the result of a trial."""
        trial.set_user_attr(SECONDS, seconds)
        self.study.tell(trial, value)

    def give_up(self, trial: Trial, failure: str | None = None) -> None:
        """End a trial that isn't worth going on with, and remove its run.

        Args:
            trial: The trial.
            failure: Why it can't go on; None if it was pruned.
        """
        if failure is not None:
            trial.set_user_attr(FAILURE, failure)
        # To Optuna both are pruned: the sampler learns from those, not from trials that it knows as failed.
        self.study.tell(trial, state=TrialState.PRUNED)
        shutil.rmtree(self.run(trial).folder, ignore_errors=True)

    def trials(self) -> list[FrozenTrial]:
        """Those that are done, are at work or wait to go on, in the order in which they began."""
        return [trial for trial in self.study.get_trials() if trial.state != TrialState.FAIL]

    def finished(self) -> list[FrozenTrial]:
        """Those that are done, the best first and those that were given up last."""
        better = -1 if self.study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
        complete = self.study.get_trials(states=(TrialState.COMPLETE,))
        complete.sort(key=lambda trial: (better * (trial.value or 0.0), self.number(trial)))
        return complete + self.study.get_trials(states=(TrialState.PRUNED,))

    def write(self) -> None:
        """Write ``trials.csv`` and, of the best trial, the settings: ``best.yaml`` for ``fit --config``."""
        with self._alone():
            finished = self.finished()
            rows = sorted(finished, key=self.number)
            write_csv(self.table, [self.columns(), *(self.row(trial) for trial in rows)])
            if finished and finished[0].state == TrialState.COMPLETE:
                settings = yaml.safe_load(self.run(finished[0]).config.read_text(encoding="utf-8"))
                settings["ckpt_path"] = None  # what an earlier version had of a trial that went on
                with atomic_write(self.best, "w", encoding="utf-8") as file:
                    yaml.safe_dump(settings, file, sort_keys=False, allow_unicode=True)

    def columns(self) -> list[str]:
        """The header of ``trials.csv``."""
        return ["trial", "state", "value", *self.space, "seconds"]

    def row(self, trial: FrozenTrial) -> list[Any]:
        """What it has of a trial; the value of a trial that was given up is its last one."""
        attributes = trial.user_attrs
        state = attributes.get(FAILURE) or trial.state.name.lower()
        parameters = [trial.params[name] for name in self.space]
        return [self.run(trial).folder.name, state, trial.value, *parameters, attributes.get(SECONDS)]

    def discard(self) -> None:
        """Remove what the sweep made, unless a trial is done, is another process's, or has a checkpoint."""
        with self._alone():
            self._take_over()
            others = [trial for trial in self.trials() if trial.state != TrialState.WAITING]
            if not others and not any(self.folder.glob("trial_*/checkpoints")):
                for trial in self.folder.glob("trial_[0-9]*/"):
                    shutil.rmtree(trial)
                locks = self._lock_file, *self.folder.glob(".trial_[0-9]*.lock")
                for file in (self.settings, self.table, self.best, *self.folder.glob("sweep.db*"), *locks):
                    file.unlink(missing_ok=True)
                Run(self.folder).remove_empty()  # it may be that of other runs

    def _alone(self) -> FileLock:
        """What one process at a time has."""
        return FileLock(self._lock_file)

    def _held(self, trial: Trial | FrozenTrial) -> FileLock:
        """What the process has that a trial is trained by, as long as it lives."""
        return FileLock(self._held_file(trial), timeout=0)

    def _held_file(self, trial: Trial | FrozenTrial) -> Path:
        return self.folder / f".trial_{trial.number}.lock"

    def _take_over(self) -> None:
        """Let the trials of processes that were killed be tried again, with the same settings and in the same folder.

        Optuna's own heartbeat would take them for dead only after minutes, and a process that was stopped for a while
        too. The system gives a lock back when a process ends, however it does.
        """
        for trial in self.study.get_trials(states=(TrialState.RUNNING,)):
            try:
                with self._held(trial):
                    self._held_file(trial).unlink(missing_ok=True)
            except Timeout:
                continue
            self.study.tell(trial.number, state=TrialState.FAIL)
            number, tries = trial.user_attrs.get(NUMBER), trial.user_attrs.get(TRIES, 1)
            if number is not None and tries < MOST_TRIES:
                self.study.enqueue_trial(trial.params, {NUMBER: number, TRIES: tries + 1})
