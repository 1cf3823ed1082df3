import pytest
import torch
from torch import nn

from datamodules import UserError
from lightning_modules.hardware import fastest_memory_format
from lightning_modules.networks.custom_cnn import CustomCNN
from lightning_modules.networks.reference_cnn import ReferenceCNN
from lightning_modules.preprocessing import Preprocessing
from lightning_modules.recipe import Recipe

NAMES = ["zero", "one", "two"]


@pytest.mark.parametrize("network", [CustomCNN, ReferenceCNN])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_a_network_takes_the_raw_batch(network, in_channels):
    model = network(NAMES, in_channels, 40).eval()
    images = torch.randint(0, 256, (4, in_channels, 40, 40), dtype=torch.uint8)
    logits = model(images)
    assert logits.shape == (4, 3)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(model(images.float() / 255), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.forward_head(model.forward_pooled(images)), logits)


def test_the_reference_network_is_that_of_the_reference():
    model = ReferenceCNN(NAMES, 1, 100)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [(64, 1, 5, 5), (64,), (32, 64, 5, 5), (32,), (128, 32 * 22 * 22), (128,), (3, 128), (3,)]
    activations = [type(layer) for layer in model.features]
    assert activations.count(nn.ReLU) == 3
    assert activations.count(nn.MaxPool2d) == 2
    assert model.features[0].bias.abs().max() == 0


def test_our_network_is_smaller_than_the_reference():
    ours, reference = (sum(p.numel() for p in net(NAMES, 1, 100).parameters()) for net in (CustomCNN, ReferenceCNN))
    assert ours < reference / 10


def test_weight_decay_spares_biases_and_norms():
    model = CustomCNN(NAMES, 1, 28, recipe=Recipe(weight_decay=0.5))
    decayed, spared = model.parameter_groups()
    assert decayed["weight_decay"] == 0.5
    assert spared["weight_decay"] == 0
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_the_loss_of_an_empty_batch_is_nothing():
    model = CustomCNN(NAMES, 1, 28).eval()
    logits = model(torch.zeros(0, 1, 28, 28, dtype=torch.uint8))
    assert model.loss(logits, torch.zeros(0, dtype=torch.int64)).item() == 0


@pytest.mark.parametrize(("network", "options"), [(CustomCNN, {"input_size": 10}), (CustomCNN, {"width": 1})])
def test_a_network_that_cannot_be_built_says_why(network, options):
    (name, value) = next(iter(options.items()))
    with pytest.raises(UserError, match=f"{name} must be at least .* got {value}"):
        network(NAMES, 1, 28, **options)


def test_images_too_small_for_the_reference_network_are_a_clear_error():
    with pytest.raises(UserError, match="at least 16 pixels"):
        ReferenceCNN(NAMES, 1, 8)


def test_one_class_is_no_classifier():
    with pytest.raises(UserError, match="at least two classes"):
        CustomCNN(["only"], 1, 28)


def test_pixels_are_rescaled_normalised_and_resized():
    preprocessing = Preprocessing(1, 8, (0.5,), (0.25,))
    white = torch.full((2, 1, 16, 16), 255, dtype=torch.uint8)
    torch.testing.assert_close(preprocessing(white), torch.full((2, 1, 8, 8), 2.0))
    torch.testing.assert_close(preprocessing(white / 255), torch.full((2, 1, 8, 8), 2.0))


def test_grey_is_repeated_and_colour_turned_to_grey():
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    three = Preprocessing(3, 8, (0.0,) * 3, (1.0,) * 3)(images)
    assert three.shape == (2, 3, 8, 8)
    assert torch.equal(three[:, 0], three[:, 2])
    one = Preprocessing(1, 8, (0.0,), (1.0,))(images.repeat(1, 3, 1, 1))
    torch.testing.assert_close(one, images / 255, atol=1e-3, rtol=0)


def test_memory_format_is_that_of_the_device_or_as_told():
    assert fastest_memory_format(torch.device("cpu")) == torch.channels_last
    assert fastest_memory_format(torch.device("mps")) == torch.contiguous_format
    for option, kept in ((None, torch.channels_last), (True, torch.channels_last), (False, torch.contiguous_format)):
        model = CustomCNN(NAMES, 1, 28, recipe=Recipe(channels_last=option))
        model.use_memory_format(torch.device("cpu"))
        assert model.features[1][0].weight.is_contiguous(memory_format=kept)
