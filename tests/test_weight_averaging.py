"""The weights that are scored and kept: an average over the last steps."""

import json

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn

from lightning_modules.callbacks.weight_averaging import WarmupEMAWeightAveraging
from tests.conftest import REPOSITORY, draw_digits, train_in


class Counting(LightningModule):
    """Its only weight, and BatchNorm's count of batches, are the number of steps taken."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def training_step(self, batch, index):
        self.optimizers().step()  # counts a step for Lightning
        with torch.no_grad():
            self.weight += 1
            self.batches += 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.parametrize(("steps", "decay"), [(1, 0.99), (12, 0.99), (30, 0.5)])
def test_the_average_is_over_a_tenth_of_all_steps_or_what_decay_says(steps, decay, tmp_path):
    model = Counting()
    average = WarmupEMAWeightAveraging(decay)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_steps=steps, accelerator="cpu", callbacks=average, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, torch.utils.data.DataLoader(torch.zeros(steps)))
    expected = 1.0  # the first step's weights, whole: those before it weren't trained
    for step in range(1, steps):
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * (step + 1)
    assert model.weight.item() == pytest.approx(expected, rel=1e-6)
    assert model.batches == steps


def test_decay_beyond_its_range_is_refused():
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\], got 1.5"):
        WarmupEMAWeightAveraging(1.5)


def test_a_short_run_keeps_what_it_learnt(tmp_path):
    draw_digits(tmp_path / "digits")
    data = ("--data", "ImageFolderDataModule", "--data.root", "digits", "--data.batch_size", "8")
    config = str(REPOSITORY / "configs" / "custom_cnn.yaml")
    runs = train_in(tmp_path, "--config", config, *data, "--trainer.max_epochs", "10")
    summary = json.loads((runs / "custom_cnn" / "version_0" / "summary.json").read_text())
    assert summary["val_accuracy"] == 1
