"""Keep the last checkpoint of a run and the best one, also when the run is resumed."""

import shutil
from pathlib import Path
from typing import Any, Literal

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from datamodules.writing import atomic_write
from lightning_modules.checkpoint import read_checkpoint

Monitor = Literal["val_accuracy", "val_loss", "val_objective", "epoch"]
HIGHER_IS_BETTER = ("val_accuracy", "epoch")


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt``: of the last epoch. A class of its own: a run may have a ``ModelCheckpoint`` of its user beside it.

    Args:
        folder: Where it is kept.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
        self.dirpath = str(folder)  # as it is: the constructor would make it absolute, and a run may be moved


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``: of the epoch with the best validation metric.

    A resumed run has a folder of its own. Lightning would forget there how good the best epoch was; here the
    checkpoint comes along, and only a better one takes its place.

    Args:
        monitor: ``val_accuracy``, the higher the better; ``val_loss``, or ``val_objective``, with label smoothing but
            without class weights and teachers, the lower the better; ``epoch`` takes the last one for the best.
        folder: Where it is kept.
    """

    def __init__(self, monitor: Monitor, folder: Path) -> None:
        mode = "max" if monitor in HIGHER_IS_BETTER else "min"
        super().__init__(
            monitor=monitor, mode=mode, filename="best", save_on_train_epoch_end=True, enable_version_counter=False
        )
        self.dirpath = str(folder)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Bring the best checkpoint of the resumed run into this run's folder; without it, the best is yet to come."""
        state = checkpoint["callbacks"].pop(self.state_key, None)
        if state is None or not state["best_model_path"]:
            return
        noted = Path(state["best_model_path"])
        # Beside the resumed one first: a run may be moved, and the noted path is relative to where it was started.
        places = (Path(str(trainer.ckpt_path)).with_name(noted.name), noted)
        earlier = next((place for place in places if self._is_of(place, state)), None)
        if earlier is None:
            return
        best = Path(str(self.dirpath)) / noted.name
        if trainer.is_global_zero and not (best.exists() and best.samefile(earlier)):
            best.parent.mkdir(parents=True, exist_ok=True)
            with earlier.open("rb") as source, atomic_write(best) as file:
                shutil.copyfileobj(source, file)
        checkpoint["callbacks"][self.state_key] = {
            **state,
            "dirpath": self.dirpath,
            "best_model_path": str(best),
            "kth_best_model_path": str(best),
            "best_k_models": {str(best): state["best_model_score"]},
        }

    def _is_of(self, place: Path, state: dict[str, Any]) -> bool:
        """Whether a file is the best checkpoint that a state speaks of, not another run's."""
        if not place.is_file():
            return False
        own = read_checkpoint(place)["callbacks"].get(self.state_key, {})
        return bool(own.get("best_model_score") == state["best_model_score"])
