import csv
import json

import pytest
import timm
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file

from datamodules import UserError
from lightning_modules.checkpoint import load_classifier
from lightning_modules.cli import main
from lightning_modules.networks.mobilenetv2 import MobileNetV2
from lightning_modules.recipe import Recipe
from tests.conftest import TINY
from tests.test_cli import Intruder, assert_same_weights, fail, run

NAMES = ["zero", "one", "two"]
SMALL = ["--model", "MobileNetV2", "--model.variant", "mobilenetv2_035", "--model.input_size", "32"]


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return timm.create_model("mobilenetv2_035").state_dict()


@pytest.fixture
def weights(backbone, workplace):
    """A file of weights with a classifier of a thousand classes, as timm has them."""
    torch.save(backbone, "weights.pth")
    return ["--model.weights", "weights.pth"]


def small(**options):
    return MobileNetV2(NAMES, 1, 40, **{"variant": "mobilenetv2_035", "weights": None, "input_size": 32, **options})


@pytest.mark.parametrize("in_channels", [1, 3])
def test_it_takes_the_raw_batch_grey_or_colour(in_channels):
    model = small().eval()
    images = torch.randint(0, 256, (2, in_channels, 40, 40), dtype=torch.uint8)
    assert model(images).shape == (2, 3)
    assert model.forward_pooled(images).shape == (2, 1280)


def test_pixels_are_prepared_as_the_weights_expect():
    model = small(variant="mobilenetv2_100", input_size=None)
    assert model.preprocessing.size == 224
    white = model.preprocessing(torch.full((1, 1, 224, 224), 255, dtype=torch.uint8))
    expected = (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(white[0, :, 0, 0], expected)
    assert model.preprocessing.interpolation == "bicubic"


@pytest.mark.parametrize(
    ("unfreeze_at", "training", "expected"),
    [(None, True, [32, 8]), (None, False, [32, 8]), (0, True, [40]), (0, False, [32, 8])],
)
def test_a_large_batch_is_seen_in_parts_unless_its_images_depend_on_each_other(unfreeze_at, training, expected):
    model = small(unfreeze_at=unfreeze_at).train(training)
    images = torch.randint(0, 256, (40, 1, 32, 32), dtype=torch.uint8)
    sizes = []
    model.backbone.conv_stem.register_forward_pre_hook(lambda layer, inputs: sizes.append(len(inputs[0])))
    features = model.forward_pooled(images)
    assert sizes == expected
    if not model.backbone.training:
        torch.testing.assert_close(features, model.backbone(model.preprocessing(images)))


@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_weights_come_from_a_file(backbone, tmp_path, form):
    path = tmp_path / f"weights.{form}"
    if form == "pth":
        torch.save(backbone, path)
    else:
        save_file(backbone, path)
    loaded = small(weights=str(path)).backbone.state_dict()
    assert loaded.keys() == {name for name in backbone if not name.startswith("classifier.")}
    assert all(torch.equal(loaded[name], backbone[name]) for name in loaded)


class Watch(Callback):
    """Keeps the backbone as it is at the end of every epoch."""

    seen = ()

    def on_fit_start(self, trainer, pl_module):
        Watch.seen = [self.copy(pl_module)]

    def on_train_epoch_end(self, trainer, pl_module):
        Watch.seen.append(self.copy(pl_module))
        Watch.graph = pl_module.backbone.conv_stem.weight.grad is not None

    def copy(self, model):
        return {name: value.clone() for name, value in model.backbone.state_dict().items()}


def changed(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


def fit(capsys, *args):
    config = ["--config", TINY, *SMALL, "--trainer.callbacks", "tests.test_mobilenetv2.Watch"]
    run(capsys, "fit", *config, *args)
    return Watch.seen


@pytest.mark.slow
def test_a_frozen_backbone_does_not_move_in_any_weight_or_buffer(weights, capsys, workplace):
    seen = fit(capsys, *weights, "--model.unfreeze_at", "null")
    assert not changed(seen[0], seen[3])
    assert not Watch.graph
    assert (workplace / "runs" / "mobilenetv2" / "version_0" / "summary.json").exists()


class Seen(Callback):
    """Counts the images that the backbone sees in training, and in validation."""

    counts = ()

    def on_fit_start(self, trainer, pl_module):
        Seen.counts = []
        pl_module.backbone.conv_stem.register_forward_pre_hook(lambda layer, inputs: Seen.counts.append(len(inputs[0])))


PLAIN = ["--model.unfreeze_at", "null", "--data.augmentation", "null"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (PLAIN, 48 + 12),  # each image once, in three epochs
        ([*PLAIN, "--data.balance", "true"], 48 + 12),
        (["--model.unfreeze_at", "null"], 3 * 48 + 12),  # augmented anew in each epoch
        ([*PLAIN, "--trainer.limit_train_batches", "1"], 3 * 16 + 12),
        ([*PLAIN, "--trainer.overfit_batches", "1"], 3 * 16 + 12),
        ([*PLAIN, "--trainer.num_sanity_val_steps", "1"], 48 + 12),
        (["--data.augmentation", "null"], 3 * (48 + 12)),
    ],
)
def test_a_backbone_that_stays_frozen_sees_an_image_that_stays_the_same_once(weights, capsys, options, expected):
    run(
        capsys,
        "fit",
        "--config",
        TINY,
        *SMALL,
        *weights,
        *options,
        "--trainer.callbacks",
        "tests.test_mobilenetv2.Seen",
    )
    assert sum(Seen.counts) == expected


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_features_that_are_kept_are_those_that_the_backbone_gives(weights, capsys, workplace, precision):
    run(capsys, "fit", "--config", TINY, *SMALL, *weights, *PLAIN, "--trainer.precision", precision)
    folder = workplace / "runs" / "mobilenetv2" / "version_0"
    with (folder / "metrics.csv").open() as file:
        losses = [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]
    best = json.loads((folder / "summary.json").read_text())["best_epoch"]
    scored = run(capsys, "validate", "--ckpt_path", str(folder / "checkpoints" / "best.ckpt"))
    assert f"{losses[best - 1]:.4f}" in scored


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_on_kept_features_resumes_bit_for_bit(weights, capsys, workplace, precision):
    config = ["--config", TINY, *SMALL, *weights, *PLAIN, "--model.recipe.schedule", "constant"]
    config += ["--trainer.precision", precision]
    run(capsys, "fit", *config, "--name", "whole")
    run(capsys, "fit", *config, "--name", "part", "--trainer.max_epochs", "1")
    last = {name: workplace / "runs" / name / "version_0" / "checkpoints" / "last.ckpt" for name in ("whole", "part")}
    run(capsys, "fit", *config, "--name", "rest", "--ckpt_path", str(last["part"]))
    assert_same_weights(last["whole"], workplace / "runs" / "rest" / "version_0" / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(("size", "mentioned"), [("20", True), ("32", False)])
def test_images_that_are_made_smaller_and_then_enlarged_are_mentioned(weights, capsys, caplog, photos, size, mentioned):
    options = [*PLAIN, "--data.root", "photos", "--data.image_size", size, "--trainer.max_epochs", "1"]
    with caplog.at_level("INFO"):
        run(capsys, "fit", "--config", TINY, *SMALL, *weights, *options)
    assert ("--data.image_size 32 keeps more" in caplog.text) == mentioned


def test_the_backbone_learns_from_the_epoch_it_is_told(weights, capsys):
    seen = fit(capsys, *weights, "--model.unfreeze_at", "1")
    assert not changed(seen[0], seen[1])
    moved = changed(seen[1], seen[2])
    assert "conv_stem.weight" in moved
    assert "bn1.running_mean" in moved


def test_a_frozen_backbone_keeps_no_graph():
    model = small(unfreeze_at=None).train()
    images = torch.zeros(2, 1, 40, 40, dtype=torch.uint8)
    assert model.forward_pooled(images).grad_fn is None
    assert not model.backbone.training
    assert model.head.training
    assert small(unfreeze_at=0).train().forward_pooled(images).grad_fn is not None


def test_both_learning_rates_stand_in_the_optimiser_from_the_start():
    for unfreeze_at in (None, 0, 3):
        model = small(unfreeze_at=unfreeze_at, recipe=Recipe(learning_rate=0.1), backbone_learning_rate=0.01)
        groups = model.parameter_groups()
        assert {group["lr"] for group in groups} == {0.1, 0.01}
        assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("stopped_after", [1, 2])
def test_a_run_resumes_in_either_phase(weights, capsys, workplace, stopped_after):
    config = ["--config", TINY, *SMALL, *weights, "--model.unfreeze_at", "2", "--model.recipe.schedule", "constant"]
    run(capsys, "fit", *config, "--name", "whole")
    run(capsys, "fit", *config, "--name", "part", "--trainer.max_epochs", str(stopped_after))
    last = {name: workplace / "runs" / name / "version_0" / "checkpoints" / "last.ckpt" for name in ("whole", "part")}
    run(capsys, "fit", *config, "--name", "rest", "--ckpt_path", str(last["part"]))
    assert_same_weights(last["whole"], workplace / "runs" / "rest" / "version_0" / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_a_run_that_stopped_within_an_epoch_resumes_with_the_backbone_that_learns(weights, capsys, workplace):
    options = [*weights, "--model.unfreeze_at", "1", "--model.recipe.schedule", "constant"]
    fit(capsys, *options, "--name", "part", "--trainer.max_steps", "4")
    last = workplace / "runs" / "part" / "version_0" / "checkpoints" / "last.ckpt"
    before = torch.load(last, weights_only=True)["state_dict"]
    seen = fit(capsys, *options, "--ckpt_path", str(last), "--trainer.max_steps", "6")
    assert not torch.equal(before["backbone.conv_stem.weight"], seen[-1]["conv_stem.weight"])


@pytest.mark.slow
def test_scoring_and_resuming_need_no_other_weights(weights, capsys, workplace):
    run(capsys, "fit", "--config", TINY, *SMALL, *weights, "--trainer.max_epochs", "1")
    (workplace / "weights.pth").unlink()
    checkpoints = workplace / "runs" / "mobilenetv2" / "version_0" / "checkpoints"
    assert load_classifier(checkpoints / "best.ckpt").class_names == ["0_digits", "1_digits", "2_digits"]
    assert "test_accuracy" in run(capsys, "test", "--ckpt_path", str(checkpoints / "best.ckpt"))
    run(capsys, "fit", "--ckpt_path", str(checkpoints / "last.ckpt"))


def test_weights_that_cannot_be_downloaded_name_the_ways_on(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        small(weights="pretrained", variant="mobilenetv2_100")
    message = str(caught.value)
    assert "\n" not in message
    for way in ("mobilenetv2_100", "--model.weights PATH", "HF_ENDPOINT", "--model.weights null"):
        assert way in message


def write_truncated(path, backbone):
    torch.save(backbone, path)
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("w.pth", lambda path, _: None, "no such file"),
        ("w.pth", write_truncated, "not written by torch.save, or cut off"),
        ("w.pth", lambda path, _: path.write_text("text"), "not written by torch.save, or cut off"),
        (
            "w.pth",
            lambda path, _: torch.save(timm.create_model("resnet10t").state_dict(), path),
            "not the weights of mobile",
        ),
        ("w.pth", lambda path, backbone: torch.save({**backbone, "x": Intruder()}, path), "could run code"),
        ("w.pth", lambda path, backbone: torch.save([1, 2], path), "tensors by name"),
        ("w.safetensors", lambda path, _: None, "no such file"),
        ("w.safetensors", lambda path, _: path.write_text("text"), "not a safetensors file"),
    ],
)
def test_weights_that_cannot_be_used_are_a_clear_error(workplace, capsys, backbone, name, write, message):
    write(workplace / name, backbone)
    assert message in fail(capsys, "fit", "--config", TINY, *SMALL, "--model.weights", name)
    assert not (workplace / "intruder was here").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "mobilenetv9"}, "no variant mobilenetv9; it has mobilenetv2_035"),
        ({"dropout": 1}, r"dropout must lie in \[0, 1\), got 1"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"input_size": 8}, "input_size must be at least 32 pixels, got 8"),
        ({"backbone_learning_rate": 0}, "backbone_learning_rate must be above 0, got 0"),
    ],
)
def test_an_argument_out_of_range_is_a_clear_error(options, message):
    with pytest.raises(UserError, match=message):
        small(**options)


def test_the_real_weights_know_a_photograph(shared):
    model = MobileNetV2(NAMES, 1, 100, weights=str(shared / "weights" / "mobilenetv2_100.pth"))
    assert model.backbone.num_features == 1280


@pytest.mark.slow
def test_the_recipes_train(weights, capsys, digits):
    for config in ("mobilenetv2", "mobilenetv2_frozen", "photographs"):
        quick = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1", "--model.input_size", "32"]
        options = ["--data.root", str(digits), "--data.image_size", "20", "--model.variant", "mobilenetv2_035"]
        path = f"{TINY.rpartition('tests')[0]}configs/{config}.yaml"
        assert main(["fit", "--config", path, *options, *weights, *quick, "--name", config]) == 0
        summary = json.loads((digits.parent / "runs" / config / "version_0" / "summary.json").read_text())
        assert summary["model"] == "MobileNetV2"
