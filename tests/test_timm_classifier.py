"""Any network of timm, and weights to start from."""

from contextlib import nullcontext

import pytest
import timm
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback

from datamodules import ImageFolderDataModule, UserError
from lightning_modules.checkpoint import load_classifier
from lightning_modules.commands import export
from lightning_modules.networks import CustomCNN, TimmClassifier
from tests.conftest import TINY
from tests.test_cli import best, fail, run
from tests.test_mobilenetv2 import NAMES

VARIANTS = ["test_resnet", "test_efficientnet", "test_vit"]
FIT = ["fit", "--config", TINY, "--trainer.max_epochs", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_of_timm_trains_predicts_and_is_exported(workplace, capsys, variant):
    network = ["--model", "TimmClassifier", "--model.variant", variant, "--model.weights", "null"]
    run(capsys, *FIT, *network, "--model.input_size", "64")
    folder = workplace / "runs" / "timm_classifier" / "version_0"
    assert "test_accuracy" in run(capsys, "test", "--ckpt_path", best(folder))
    run(capsys, "predict", "--ckpt_path", best(folder), "--images", "digits")
    assert export.main([str(folder), "exported"]) == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_its_input_is_what_its_weights_were_trained_with(variant):
    model = TimmClassifier(NAMES, 1, 40, variant=variant, weights=None).eval()
    trained_with = timm.create_model(variant).pretrained_cfg
    assert model.preprocessing.size == trained_with["input_size"][-1]
    assert model.preprocessing.mean.flatten().tolist() == pytest.approx(trained_with["mean"])
    images = torch.randint(0, 256, (2, 1, 40, 40), dtype=torch.uint8)
    features = model.forward_pooled(images)
    torch.testing.assert_close(model.forward_head(features), model(images))
    if variant == "test_vit":
        with pytest.raises(UserError, match="not an average over positions"):
            model.forward_features(images)
    else:
        torch.testing.assert_close(model.forward_features(images).mean(dim=(2, 3)), features, atol=1e-4, rtol=1e-3)


def test_a_variant_that_timm_does_not_have_names_some_that_are_like_it():
    with pytest.raises(UserError, match=r"no variant resnet19; it has .*resnet18"):
        TimmClassifier(NAMES, 1, 40, variant="resnet19", weights=None)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        ["CustomCNN"],
        ["ReferenceCNN"],
        ["TimmClassifier", "--model.variant", "test_resnet", "--model.backbone_learning_rate", "1e-12"],
    ],
)
def test_any_network_starts_from_weights_of_its_own_kind(workplace, capsys, caplog, network):
    size = ["--model.input_size", "64"] if network[0] == "TimmClassifier" else []
    network = ["--model", *network, *size]
    run(capsys, *FIT, *network, "--model.weights", "null", "--name", "first")
    first = best(workplace / "runs" / "first" / "version_0")
    assert export.main([str(workplace / "runs" / "first" / "version_0"), "exported"]) == 0
    slow = ["--model.recipe.learning_rate", "1e-12", "--model.recipe.weight_decay", "0"]
    for weights in (first, "exported"):
        run(capsys, *FIT, *network, *slow, "--model.weights", weights, "--name", "same")
    models = [
        load_classifier(workplace / "runs" / name / "checkpoints" / "best.ckpt")
        for name in ("first/version_0", "same/version_0", "same/version_1")
    ]
    for name, value in models[0].named_parameters():
        for other in models[1:]:
            torch.testing.assert_close(other.get_parameter(name), value)
    with caplog.at_level("INFO"):
        fewer = ["--data.classes", "[0_digits, 1_digits]", "--name", "fewer"]
        run(capsys, *FIT, *network, *slow, "--model.weights", first, *fewer)
    assert "the weights tell other classes apart; those of the head are new" in caplog.text
    model = load_classifier(workplace / "runs" / "fewer" / "version_0" / "checkpoints" / "best.ckpt")
    assert len(model.class_names) == 2


def test_features_of_a_fit_that_failed_are_not_those_of_the_next(digits, tmp_path):
    class Failing(Callback):
        def on_train_batch_end(self, *_):
            raise RuntimeError("fails")

    class Looking(Callback):
        def on_train_batch_end(self, trainer, model, outputs, batch, batch_idx):
            expected = model.forward_pooled(batch.images)
            torch.testing.assert_close(model._features["train"][batch.indices], expected, atol=1e-4, rtol=1e-3)

    model = TimmClassifier(NAMES, 1, 20, variant="test_resnet", weights=None, input_size=32, unfreeze_at=None)
    options = {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    for seed, callback, ends in (
        (1, Failing(), pytest.raises(RuntimeError, match="fails")),
        (2, Looking(), nullcontext()),
    ):
        data = ImageFolderDataModule(str(digits), image_size=20, split_seed=seed, augmentation=None)
        with ends:
            Trainer(**options, callbacks=[callback], default_root_dir=tmp_path).fit(model, data)


def test_weights_of_another_network_are_refused(trained, capsys):
    message = fail(capsys, *FIT, "--model", "ReferenceCNN", "--model.weights", best(trained))
    assert "best.ckpt: not the weights of a ReferenceCNN" in message
    assert "nowhere.ckpt: no such file" in fail(capsys, *FIT, "--model.weights", "nowhere.ckpt")
    torch.save({"head.weight": torch.zeros(3, 32)}, "few.pth")
    with pytest.raises(UserError, match=r"few.pth: not the weights of a CustomCNN"):
        CustomCNN(NAMES, 1, 28, weights="few.pth")
