"""Keep the best checkpoint of a run, also when the run is resumed."""

import shutil
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """``best.ckpt``: of the epoch with the best validation metric.

    A resumed run has a folder of its own. Lightning would forget there how good the best epoch was; here the
    checkpoint comes along, and only a better one takes its place.

    Args:
        monitor: ``val_accuracy``, the higher the better, or ``val_loss``, the lower the better.
    """

    def __init__(self, monitor: Literal["val_accuracy", "val_loss"]) -> None:
        mode = "max" if monitor == "val_accuracy" else "min"
        super().__init__(monitor=monitor, mode=mode, filename="best", enable_version_counter=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Bring the best checkpoint of the resumed run into this run's folder."""
        earlier = Path(state_dict["best_model_path"])
        if earlier.is_file() and self.dirpath is not None:
            best = Path(self.dirpath) / earlier.name
            best.parent.mkdir(parents=True, exist_ok=True)
            if not best.exists():
                shutil.copyfile(earlier, best)
            state_dict = {
                **state_dict,
                "dirpath": self.dirpath,
                "best_model_path": str(best),
                "kth_best_model_path": str(best),
                "best_k_models": {str(best): state_dict["best_model_score"]},
            }
        super().load_state_dict(state_dict)
