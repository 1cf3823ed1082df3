"""Early stopping that goes on with the settings of the run at hand."""

from typing import Any

from lightning.pytorch import callbacks


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, but for a resumed run, which has the patience that it was given, not that of the earlier run."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up how long the run has waited, and for what."""
        super().load_state_dict({**state_dict, "patience": self.patience})
