"""The command line: Lightning's own, with the links, defaults and guards of this project."""

import contextlib
import inspect
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info

import datamodules
from datamodules.errors import UserError, exit_status
from datamodules.figures import save_figure
from datamodules.imports import HELP, import_modules
from datamodules.normalizer import DigitNormalizer
from datamodules.text import as_table, printable
from lightning_modules.arguments import as_meant, read_configs_as_meant
from lightning_modules.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, Monitor
from lightning_modules.callbacks.early_stopping import EarlyStopping
from lightning_modules.callbacks.interrupt import InterruptBetweenBatches, signals_kept
from lightning_modules.callbacks.plateau import PlateauSchedules
from lightning_modules.callbacks.report import RunReport
from lightning_modules.callbacks.teachers import Teachers
from lightning_modules.checkpoint import known_class
from lightning_modules.commands.predict import (
    add_options,
    check_outputs,
    predict_files,
    resized_no_more,
    write_answers,
)
from lightning_modules.distillation import Distillation, check_teachers
from lightning_modules.exported import WEIGHTS
from lightning_modules.first_configs import CONTRACT, with_first_configs
from lightning_modules.folds import Folds
from lightning_modules.hardware import fastest_precision
from lightning_modules.network import Network
from lightning_modules.plots import plot_range_test
from lightning_modules.run import Run
from lightning_modules.series import Series, asks_for_series
from lightning_modules.summary import describe
from lightning_modules.tuning import (
    TRAINER,
    RangeTest,
    check_tunable,
    find_batch_size,
    find_learning_rate,
    set_learning_rate,
)
from lightning_modules.weights import read_weights

# Lightning warns of these; each is as it should be.
IGNORED_WARNINGS = (
    "The '.*_dataloader' does not have many workers",  # the pixels are in memory: nothing to wait for
    "Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",  # they are for training only
    "The number of training batches .* is smaller than the logging interval",  # metrics are logged by epoch
    "The dirpath has changed from",  # a resumed run has a folder of its own
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",  # between Lightning and torch
    "Checkpoint directory .* exists and is not empty",
    "Experiment logs directory .* exists and is not empty",  # of a fold that goes on
    ".*configure_optimizers` will be overridden by",  # as was asked for by --optimizer
    "Precision .* is not supported by the model summary",  # which only estimates the size of the weights
    "`ModelCheckpoint\\(monitor=.* could not find the monitored key",  # in an epoch without validation
)

SERIES = "DIGITDOODLE_SERIES"  # in the environment of processes that Lightning starts: the folder of their runs

# The commands that are methods of the Trainer, and what each leaves out of its options.
TRAINER_COMMANDS = {
    "fit": {"train_dataloaders", "val_dataloaders"},
    "validate": {"verbose"},
    "test": {"verbose"},
    "predict": {"return_predictions"},
}

PROGRAM = "python -m lightning_modules"
MACHINE = {"accelerator", "devices", "num_nodes", "strategy"}  # may change from fold to fold, or trial to trial

read_configs_as_meant()
for name in datamodules.__all__:  # to be found by name on the command line
    getattr(datamodules, name)


class TrainerError(UserError):
    """The Trainer's settings are wrong, or don't suit this machine."""


class DigitDoodleCLI(LightningCLI):
    """``fit``, ``validate``, ``test`` and ``predict`` for any of our networks on any of our datamodules.

    The network is built from the data: their class names, channels and size are linked to it. A checkpoint carries
    the hyper-parameters of both, which stand in for a config that isn't given. Results go to stdout, everything
    else to stderr.

    Args:
        args: A command and its options; None for those of this process.
        into: Where ``fit`` leaves its run, and goes on from the last checkpoint in it; None makes a new folder, and
            prints the result.
        callbacks: Further ones of the Trainer of ``fit``.
    """

    def __init__(self, args: ArgsType = None, into: Run | None = None, callbacks: Sequence[Callback] = ()) -> None:
        self.into = into
        self.callbacks = callbacks
        self.run: Run | None = None
        self.report: RunReport | None = None
        self.series: Series | None = None
        self.tuning_in: str | None = None  # a folder, while the Trainer tunes
        self.range_test: RangeTest | None = None
        super().__init__(
            Network,
            None,
            trainer_defaults={
                "max_epochs": 20,
                "default_root_dir": "runs",
                "num_sanity_val_steps": 0,
                # The datamodule shards its batches itself: Lightning's sampler repeats images to even them out.
                "use_distributed_sampler": False,
            },
            seed_everything_default=42,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveConfig,
            save_config_kwargs={"save_to_log_dir": False},  # a logger of the user's own may keep its files elsewhere
            # Such checkpoints name a function to call when they are loaded; ours are read without running anything.
            load_from_checkpoint_support=False,
            parser_kwargs={
                "prog": PROGRAM,
                "epilog": f"--import MODULE: {HELP}.",
                # Or else a mistake is told below a hundred lines of options.
                **{command: {"usage": f"{PROGRAM} {command} [options]"} for command in TRAINER_COMMANDS},
            },
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """What each command leaves out of the Trainer's method; checkpoints are always read safely."""
        ours = {"model", "dataloaders", "datamodule", "weights_only"}
        return {command: ours | left_out for command, left_out in TRAINER_COMMANDS.items()}

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Add the options that ``predict`` alone has."""
        super().setup_parser(*args, **kwargs)
        predict = self._parser("predict")  # Lightning 2.6 has no public name for the parser of a command
        add_options(predict)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the data to the model, and add the options that are neither's."""
        parser.add_argument("--name", type=str | None, default=None, help="Folder of the run: runs/NAME/version_N.")
        parser.add_argument(
            "--monitor",
            type=Monitor,
            default="val_accuracy",
            help="What the best checkpoint is chosen by; the objective is the loss with label smoothing, without class "
            "weights and teachers; epoch takes the last one.",
        )
        parser.add_argument(
            "--tune",
            type=Literal["lr", "batch_size", "batch_size,lr"] | None,
            default=None,
            help="What is found before training and written into config.yaml: the learning rate by a range test, the "
            "batch size by how many images fit into memory, or first the one, then the other.",
        )
        parser.add_argument(
            "--teachers",
            type=int | list[str] | None,
            default=None,
            help="Classifiers whose answers it learns from, beside the labels: checkpoints or exports, or how many are "
            "trained for that before it, with the same settings.",
        )
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.set_defaults(
            {
                "early_stopping.monitor": "val_accuracy",
                "early_stopping.patience": 10,
                "early_stopping.strict": False,  # epochs may go without validation; RunReport finds a wrong monitor
            }
        )
        for name in CONTRACT:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
        keep_integers(parser)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse; our defaults and the hyper-parameters in a checkpoint are first configs, which all others override."""
        args = sys.argv[1:] if args is None else args
        if isinstance(args, list):
            args = as_meant(args)
            self.config = parser.parse_args(with_first_configs(args) if args and args[0] in TRAINER_COMMANDS else args)
        else:
            self.config = parser.parse_object(args)

    def _parse_ckpt_path(self) -> None:
        """Nothing to do: Lightning (2.6) lets the checkpoint override what the user says; here it is the other way."""

    def before_instantiate_classes(self) -> None:
        """Guard against what would be ignored or scored in silence, and fill in what the user left open."""
        config = self.config[self.subcommand]
        if self.subcommand != "fit" and not config.get("ckpt_path"):
            raise UserError(f"{self.subcommand} needs a trained network: give --ckpt_path …/checkpoints/best.ckpt")
        for name in CONTRACT:
            if name in (config.model.get("init_args") or {}) and config.model.init_args[name] is not None:
                raise UserError(f"model.{name} follows from the data and can't be set; remove it")
        if self.subcommand == "fit":
            check_optimizer(config)
            if config.tune:
                check_tunable(config)
            check_teachers(config)
            self.series = self._plan_series(config)
            if self.into is not None:
                self._go_on_in(self.into)
        else:
            self.save_config_callback = None
        if self.subcommand == "predict":
            config.data.init_args.images = config.images
            normalizer = config.data.init_args.normalizer
            if config.normalize == "none" and normalizer is not None:
                config.data.init_args.normalizer = None
                rank_zero_info(resized_no_more(DigitNormalizer.from_dict(dict(normalizer))))

    def instantiate_classes(self) -> None:
        """Make datamodule, network and Trainer, for each run of a series anew.

        The network notes an optimiser that is chosen in place of its own.
        """
        if self.series is not None and self.into is None:
            return
        if self.subcommand == "fit" and self.config.fit.tune:
            self._tune()
        self._build()

    def _build(self) -> None:
        super().instantiate_classes()
        config = self.config[self.subcommand]
        if self.subcommand == "fit" and config.get("optimizer"):
            chosen = {name: config[name] for name in ("optimizer", "lr_scheduler") if config.get(name)}
            self.model.optimizer_init = {name: without_enums(init).as_dict() for name, init in chosen.items()}

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Build the optimiser that was chosen (Lightning 2.6 has no public name for this)."""
        try:
            super()._add_configure_optimizers_method_to_model(subcommand)
        except (ValueError, TypeError) as error:
            raise UserError(f"--optimizer, --lr_scheduler: {error}") from error

    def _tune(self) -> None:
        """Find what is asked for; the run is then the one that its config gives, which no longer asks for it."""
        config, wanted = self.config.fit, self.config.fit.tune.split(",")
        config.tune = None
        with tempfile.TemporaryDirectory() as folder:  # Lightning keeps the weights here that it starts again from
            self.tuning_in = folder
            if "batch_size" in wanted:
                self._build()
                with self._running():
                    config.data.init_args.batch_size = find_batch_size(self.trainer, self.model, self.datamodule)
                rank_zero_info(f"Batch size {config.data.init_args.batch_size}, found by what fits into memory.")
                self._set_seed()
            if "lr" in wanted:
                self._build()
                with self._running():
                    self.range_test = find_learning_rate(self.trainer, self.model, self.datamodule)
                set_learning_rate(config, self.range_test.suggestion)
                rank_zero_info(f"Learning rate {self.range_test.suggestion:g}, found by a range test.")
                self._set_seed()
        self.tuning_in = None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with the precision, loggers and callbacks that the user left open.

        Raises:
            TrainerError: It can't be made.
            UserError: The data don't suit the network.
        """
        self.model.check_data(self.datamodule)
        config = self.config_init[self.subcommand]["trainer"]
        if config["precision"] is None and self.subcommand == "fit":  # all else is scored in full precision
            kwargs["precision"] = fastest_precision(_device(config["accelerator"]), self.model)
        callbacks = config["callbacks"] or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        try:
            trainer = self._trainer(config, callbacks, kwargs)
            check_processes(trainer)
        except Exception as error:
            self._discard()
            twice = isinstance(error, RuntimeError) and "stateful callback" in str(error)  # two of one kind
            if twice or isinstance(error, MisconfigurationException | ValueError | ModuleNotFoundError):
                raise TrainerError(f"trainer: {error}") from error
            raise
        return trainer

    def _trainer(self, config: Any, callbacks: list[Callback], kwargs: dict[str, Any]) -> Trainer:
        kwargs["use_distributed_sampler"] = False  # the datamodules share the images out
        if self.tuning_in is not None:
            kwargs |= {**TRAINER, "default_root_dir": self.tuning_in, "callbacks": []}
            trainer = super().instantiate_trainer(logger=False, enable_checkpointing=False, **kwargs)
            check_one_process(trainer, "--tune")
            return trainer
        if self.subcommand == "fit" and self.config.fit.teachers:
            callbacks = [*callbacks, Teachers(self.config.fit.teachers)]
        interrupt = InterruptBetweenBatches()
        if self.subcommand != "fit" or config["fast_dev_run"] or config["barebones"]:
            # A logger would leave an empty run folder behind.
            callbacks = [*callbacks, interrupt]
            return super().instantiate_trainer(logger=False, enable_checkpointing=False, callbacks=callbacks, **kwargs)
        run = self.into or self._create_run(type(self.model))
        self.run = run if _is_first() else None
        self.report = RunReport(run)
        kwargs["default_root_dir"] = str(run.folder)  # for what else the Trainer and its callbacks may write
        if config["logger"] in (None, True):
            kwargs["logger"] = run.loggers()
        if config["enable_checkpointing"] is not False:
            best = BestCheckpoint(self.config[self.subcommand].monitor, run.checkpoints)
            callbacks = [*callbacks, best, LastCheckpoint(run.checkpoints)]
        callbacks = [*callbacks, *self.callbacks, PlateauSchedules(), self.report, interrupt]
        if config["logger"] is not False:
            callbacks.append(LearningRateMonitor(logging_interval="epoch"))
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def _create_run(self, network: type) -> Run:
        config = self.config.fit
        name = config.name or network.__module__.rpartition(".")[2]
        return Run.create(Path(config.trainer.default_root_dir), name, make=_is_first())

    def _create_series(self, network: type, several: str) -> Path:
        """A new folder for several runs, of which the processes that Lightning starts are told.

        Raises:
            UserError: It isn't Lightning that starts them, so that they can't agree on one.
        """
        if not _is_first() and SERIES in os.environ:
            return Path(os.environ[SERIES])
        if _started_together() > 1:
            raise UserError(
                f"{several}: processes that were started together can't agree on a new folder; start fit alone: it "
                "starts --trainer.devices N itself"
            )
        folder = self._create_run(network).folder
        os.environ[SERIES] = str(folder.absolute())
        return folder

    def _plan_series(self, config: Any) -> Series | None:
        """The runs that are trained one after the other, if there are several: in a new folder, or one to go on in."""
        path, several = config.get("ckpt_path"), asks_for_series(config)
        if several is None:
            if path and Path(path).is_dir():
                raise UserError(f"{path}: not a run of folds or teachers; name a checkpoint in it")
            return None
        if config.trainer.fast_dev_run or config.trainer.barebones:
            raise UserError(f"a trial leaves no run, which each of {several} needs: leave one of them out")
        if path and not Path(path).is_dir():
            raise UserError(f"{path}: no run of {several}, each of which starts from nothing; leave one of them out")
        settings = without_enums(config)
        network = known_class(Network, config.model.class_path, Path("--model"))
        folder = Path(path) if path else self._create_series(network, several)
        series: Series
        if isinstance(config.teachers, int):
            series = Distillation(folder, config.teachers, config.seed_everything)
        else:
            series = Folds(folder, config.data.init_args.folds)
        if not path:
            if _is_first():
                self._parser("fit").save(settings, series.config, skip_none=False, overwrite=True)
            return series
        before = yaml.safe_load(series.config.read_text(encoding="utf-8"))
        now = yaml.safe_load(self._parser("fit").dump(settings, skip_none=False))
        changed = changed_settings(before, now)
        if changed:
            raise UserError(f"{path}: began with other settings: {', '.join(changed)}; leave them or start a new run")
        return series

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command, ``fit`` for each run of a series (Lightning 2.6 has no public name for this)."""
        if self.series is None:
            super()._run_subcommand(subcommand)
            return
        series, config = self.series, self.config.fit
        try:
            for name in series.left():
                run = series.runs[name]
                rank_zero_info(f"{run.folder.name} of {printable(str(series.folder))}")
                series.configure(config, name)
                self._go_on_in(run)
                self._set_seed()
                self.instantiate_classes()
                super()._run_subcommand(subcommand)
                if _is_first():
                    if self.report is None or self.report.summary is None:
                        what = "nothing was validated, or no checkpoint was kept"
                        raise UserError(f"{run.folder.name} has no result: {what}")
                    series.finish(name, self.report.summary)
        except BaseException:
            if _is_first():
                series.discard()
                if series.folder.exists():
                    rank_zero_info(f"To go on: fit --ckpt_path {printable(str(series.folder))}")
            raise
        if _is_first():
            print(series.report(_device(config.trainer.accelerator)))

    def _go_on_in(self, run: Run) -> None:
        """Let ``fit`` leave its run in this folder, and go on from the last checkpoint in it."""
        self.into, self.config.fit.ckpt_path = run, run.last_checkpoint()
        if _is_first() and self.config.fit.ckpt_path is None:
            run.start_again()

    def _discard(self) -> None:
        """Leave nothing of a run that has come to nothing."""
        if self.run is not None:
            self.run.discard()

    def fit(self, **kwargs: Any) -> None:
        """Train, then print the result."""
        try:
            if self.range_test is not None and self.run is not None:
                save_figure(plot_range_test(self.range_test), self.run.folder / "learning_rate.png")
            with self._running():
                self.trainer.fit(**kwargs, weights_only=True)
        except BaseException:
            if self.trainer.checkpoint_callbacks or self.trainer.current_epoch == 0:  # or else it has metrics alone
                self._discard()
            raise
        finally:
            if self.report is not None and self.report.summary is not None and self.into is None:
                print(describe(self.report.summary))

    def validate(self, **kwargs: Any) -> None:
        """Score the validation images and print the metrics."""
        with self._running():
            metrics = self.trainer.validate(**kwargs, verbose=False, weights_only=True)
        self._print_metrics(metrics)

    def test(self, **kwargs: Any) -> None:
        """Score the test images and print the metrics."""
        with self._running():
            metrics = self.trainer.test(**kwargs, verbose=False, weights_only=True)
        self._print_metrics(metrics)

    def predict(self, ckpt_path: str, **kwargs: Any) -> None:
        """Classify image files and say where the result is."""
        output, figure = Path(self.config.predict.output), self.config.predict.figure
        figure = Path(figure) if figure else None
        check_outputs(output, figure)
        export = Path(ckpt_path).is_dir()
        if export:
            self.model.load_state_dict(read_weights(Path(ckpt_path) / WEIGHTS))
        with self._running():
            predictions = predict_files(self.trainer, self.model, self.datamodule, None if export else ckpt_path)
        if self.trainer.is_global_zero:
            write_answers(predictions, self.datamodule.predict_set, self.model.class_names, output, figure)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Keep stdout for the result; limits and intervals that leave nothing to do are the user's to put right."""
        try:
            with contextlib.redirect_stdout(sys.stderr), signals_kept():
                yield
        except (MisconfigurationException, ValueError) as error:
            if isinstance(error, ValueError) and "val_check_interval" not in str(error):
                raise
            raise UserError(f"trainer: {error}") from error

    def _print_metrics(self, results: Any) -> None:
        if not results:
            raise UserError(f"no image was scored: --trainer.limit_*_batches leaves none to {self.subcommand}")
        (metrics,) = results
        loss = metrics["val_loss" if self.subcommand == "validate" else "test_loss"]
        if not math.isfinite(loss):
            raise UserError(
                f"the network's loss is {loss}, not finite: its training has diverged, or its file is damaged"
            )
        if self.trainer.is_global_zero:
            print(as_table(metrics.items()))


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run folder."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write all settings, also those that nobody chose."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunReport):
                callback.run.folder.mkdir(parents=True, exist_ok=True)
                config = without_enums(self.config)
                if config.get("ckpt_path") == str(callback.run.last):  # what it goes on from: it repeats from nothing
                    config.ckpt_path = None
                self.parser.save(config, callback.run.config, skip_none=False, overwrite=True)


def without_enums(value: Any) -> Any:
    """A config with the values of enumerations in place of their members, which YAML doesn't know."""
    if isinstance(value, Namespace):
        plain = value.clone()
        for name, part in vars(value).items():
            setattr(plain, name, without_enums(part))
        return plain
    if isinstance(value, list):
        return [without_enums(part) for part in value]
    return value.value if isinstance(value, Enum) else value


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The top-level settings in which two configs of ``fit`` differ, other than in what the machine decides."""
    for trainer in (before.get("trainer", {}), now["trainer"]):
        for name in MACHINE:
            trainer.pop(name, None)
    return [name for name in before if name != "ckpt_path" and before[name] != now.get(name)]


def check_one_process(trainer: Trainer, what: str) -> None:
    """Refuse several processes, before they are started.

    Args:
        trainer: The Trainer.
        what: What can't have them.

    Raises:
        TrainerError: There would be several.
    """
    if not isinstance(trainer.strategy, SingleDeviceStrategy):
        raise TrainerError(f"{what} works in one process on one device: add --trainer.devices 1")


def check_processes(trainer: Trainer) -> None:
    """Refuse a Trainer that doesn't know of all processes: each would train by itself, in the same folder.

    Raises:
        TrainerError: ``torchrun`` or SLURM has started others than the Trainer's.
    """
    started, known = _started_together(), trainer.num_devices * trainer.num_nodes
    if started > 1 and started != known:
        raise TrainerError(
            f"{started} processes were started together, but --trainer.devices and --trainer.num_nodes make {known}: "
            "give their numbers, with --trainer.strategy ddp"
        )


def check_optimizer(config: Any) -> None:
    """Refuse an optimiser on the command line beside a recipe that isn't the network's default.

    Raises:
        UserError: Both say how to train; or there is a schedule without an optimiser.
    """
    if not config.get("optimizer"):
        if config.get("lr_scheduler"):
            raise UserError("--lr_scheduler is for an --optimizer: give both, or neither")
        return
    arguments = config.model.get("init_args") or {}
    network = known_class(Network, config.model.class_path, Path("--model"))
    parameters = inspect.signature(network).parameters
    said = []
    if arguments.get("recipe") is not None:
        default = parameters["recipe"].default
        said = [
            (f"recipe.{name}", arguments["recipe"][name], getattr(default, name))
            for name in ("optimizer", "schedule", "learning_rate", "weight_decay")
        ]
    if "backbone_learning_rate" in arguments:
        name = "backbone_learning_rate"
        said.append((name, arguments[name], parameters[name].default))
    for name, value, default in said:
        if value != default:
            raise UserError(f"--optimizer and model.{name} ({value}) both say how to train: leave one of them out")


def keep_integers(parser: LightningArgumentParser) -> None:
    """Let ``--trainer.limit_train_batches 1`` be one batch: read as 1.0 it would be all of them.

    The parser tries ``float`` before ``int`` where some package asked for ``Union[float, int]`` before Lightning asked
    for ``Union[int, float]``: to Python both are one object, the one that was made first. jsonargparse (4.53) has no
    public way to the type of an option.
    """
    for action in parser._actions:
        if vars(action).get("_typehint") == int | float | None:
            vars(action)["_typehint"] = int | float | None


def _started_together() -> int:
    """How many processes ``torchrun`` or SLURM has started with this one, and this one."""
    if TorchElasticEnvironment.detect():  # also in a job of SLURM
        return TorchElasticEnvironment().world_size()
    # Of this step: a job's own script has the number of its tasks as well, but is one process.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) if SLURMEnvironment.detect() else 1


def _is_first() -> bool:
    """Whether this is the first of the processes: Lightning says so before the Trainer exists."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _with_imports(args: ArgsType) -> ArgsType:
    given = sys.argv[1:] if args is None else args
    return import_modules(given, ("--model", "--data")) if isinstance(given, list) else given


def _device(accelerator: Any) -> torch.device:
    """The kind of device that the Trainer will choose for an accelerator option."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@contextlib.contextmanager
def ignored_warnings() -> Iterator[None]:
    """Keep to ourselves what Lightning warns of without need."""
    with warnings.catch_warnings():
        for message in IGNORED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        yield


def main(args: ArgsType = None) -> int:
    """Run a command; returns its exit status, as ``exit_status`` has it; 2 for a command line that can't be parsed."""
    with ignored_warnings():
        return exit_status(lambda: DigitDoodleCLI(_with_imports(args)))
