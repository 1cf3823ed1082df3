"""What turns images into vectors."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torchvision.models import ResNet18_Weights, resnet18

from datamodules.errors import UserError
from datamodules.images import read_image
from retrieval.encoders.classifier import ClassifierEncoder
from retrieval.encoders.registry import build_encoder, describe_encoder, rebuild_encoder
from retrieval.encoders.resnet import ResNetEncoder
from tests import small_encoder  # noqa: F401 - its class is named
from tests.conftest import draw_photo


@pytest.fixture(scope="module")
def network(resnet_weights):
    network = resnet18().eval()
    network.load_state_dict(torch.load(resnet_weights, weights_only=True))
    return network


@pytest.fixture(scope="module")
def encoder(resnet_weights):
    return ResNetEncoder("resnet18", resnet_weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_taken(encoder, network, tmp_path, dtype):
    torch.save({name: part.to(dtype) for name, part in network.state_dict().items()}, tmp_path / "half.pth")
    images = [encoder.prepare(draw_photo(0, 0))]
    vectors = ResNetEncoder("resnet18", tmp_path / "half.pth").encode(images)
    np.testing.assert_allclose(vectors, encoder.encode(images), atol=0.02)


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (224, 224), (500, 61), (90, 130), (1, 7)])
def test_the_preprocessing_is_that_of_the_weights(encoder, size):
    image = draw_photo(1, 1, size)
    transformed = ResNet18_Weights.DEFAULT.transforms()(image)
    ours = encoder._normalise(torch.from_numpy(encoder.prepare(image)[None]).to(encoder.device))[0].cpu()
    # One resampling instead of two steps: rounding may differ by a level or two of 255.
    assert (ours - transformed).abs().max() < 3 / 255 / 0.22
    assert (ours - transformed).abs().mean() < 0.3 / 255 / 0.22


def test_plain_preprocessing_sees_the_whole_image(resnet_weights):
    encoder = ResNetEncoder("resnet18", resnet_weights, preprocessing="plain")
    image = draw_photo(0, 1, (320, 240))
    expected = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    np.testing.assert_array_equal(encoder.prepare(image), expected)
    assert encoder.box(320, 240) == (0, 0, 320, 240)


def test_features_are_those_of_the_average_pool(encoder, network):
    image = draw_photo(0, 2)
    batch = ResNet18_Weights.DEFAULT.transforms()(image)[None]
    network.fc, fc = torch.nn.Identity(), network.fc
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(network(batch))[0].numpy()
    network.fc = fc
    (vector,) = encoder.encode([encoder.prepare(image)])
    assert vector.dtype == np.float32
    assert vector.shape == (512,)
    np.testing.assert_allclose(np.linalg.norm(vector), 1, atol=1e-6)
    np.testing.assert_allclose(vector, expected, atol=2e-3)


def test_the_neighbours_are_those_of_the_plain_network_in_full_precision(encoder, network):
    images = [draw_photo(n % 3, n) for n in range(12)]
    batch = torch.stack([ResNet18_Weights.DEFAULT.transforms()(image) for image in images])
    network.fc, fc = torch.nn.Identity(), network.fc
    with torch.inference_mode():
        plain = torch.nn.functional.normalize(network(batch)).numpy()
    network.fc = fc
    ours = encoder.encode([encoder.prepare(image) for image in images])
    for vectors in (plain, ours):
        assert np.linalg.matrix_rank(vectors - vectors.mean(axis=0)) > 5  # they do differ
    nearest = [(vectors @ vectors.T - 2 * np.eye(12)).argmax(axis=1).tolist() for vectors in (plain, ours)]
    assert nearest[0] == nearest[1]


def test_another_layer_gives_its_maps_averaged(resnet_weights, network):
    encoder = ResNetEncoder("resnet18", resnet_weights, layer="layer2.0")
    pixels = encoder.prepare(draw_photo(2, 1))
    seen = []
    hook = network.layer2[0].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.inference_mode():
        network(encoder._normalise(torch.from_numpy(pixels[None]).to(encoder.device)).cpu())
    hook.remove()
    expected = torch.nn.functional.normalize(seen[0].mean(dim=(2, 3)))[0].numpy()
    np.testing.assert_allclose(encoder.encode([pixels])[0], expected, atol=1e-5)


def test_a_vector_does_not_depend_on_the_rest_of_the_batch(encoder):
    pixels = [encoder.prepare(draw_photo(n % 3, n)) for n in range(4)]
    together = encoder.encode(pixels)
    for image, vector in zip(pixels, together, strict=True):
        np.testing.assert_allclose(encoder.encode([image])[0], vector, atol=1e-6)


def test_the_regions_add_up_to_the_similarity(encoder):
    query, match = (encoder.prepare(draw_photo(n, n)) for n in range(2))
    q, m = encoder.encode([query, match])
    regions = encoder.similarity_map(match, q)
    assert regions.shape == (7, 7)
    np.testing.assert_allclose(regions.sum(), q @ m, rtol=1e-4)


def test_identities_tell_encoders_apart(encoder, resnet_weights, tmp_path):
    other = torch.load(resnet_weights, weights_only=True)
    other["fc.bias"] += 1
    torch.save(other, tmp_path / "other.pth")
    torch.save(torch.load(resnet_weights, weights_only=True), tmp_path / "same.pth")
    assert ResNetEncoder("resnet18", tmp_path / "same.pth").identity == encoder.identity
    for different in (
        ResNetEncoder("resnet18", tmp_path / "other.pth"),
        ResNetEncoder("resnet18", resnet_weights, layer="layer3"),
        ResNetEncoder("resnet18", resnet_weights, preprocessing="plain"),
    ):
        assert different.identity != encoder.identity


def test_torchvisions_cache_is_used(resnet_weights, tmp_path, monkeypatch, encoder):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth").symlink_to(resnet_weights)
    assert ResNetEncoder("resnet18").identity == encoder.identity


def test_without_internet_the_error_names_the_ways_on(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    message = r"can't download https://\S+ \(.*\): name a file with --weights, put it into .*checkpoints, or take a ch"
    with pytest.raises(UserError, match=message):
        ResNetEncoder("resnet18")
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "unknown encoder resnet19: expected resnet18, .* or a checkpoint"),
        ({"layer": "layer9"}, "resnet18 has no maps at layer9: the layer must be avgpool, relu, maxpool, layer1"),
        ({"layer": "fc"}, "has no maps at fc"),
        ({"name": "resnet34"}, "not the weights of a resnet34: Missing key"),
        ({"weights": "missing.pth"}, "missing.pth: no such file"),
        ({"device": "warp"}, "device warp: not available here"),
        ({"preprocessing": "none"}, "preprocessing must be weights or plain, got none"),
        ({"precision": "half"}, "precision must be full, bf16 or auto, got half"),
    ],
)
def test_bad_arguments_are_clear_errors(resnet_weights, arguments, message):
    with pytest.raises(UserError, match=message):
        ResNetEncoder(**{"name": "resnet18", "weights": resnet_weights, **arguments})


def test_weights_that_are_no_good_are_refused(resnet_weights, tmp_path):
    (tmp_path / "cut.pth").write_bytes(resnet_weights.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"cut.pth: .*cut off"):
        ResNetEncoder("resnet18", tmp_path / "cut.pth")
    state = torch.load(resnet_weights, weights_only=True)
    state["layer1.0.conv1.weight"] = torch.full_like(state["layer1.0.conv1.weight"], torch.nan)
    torch.save(state, tmp_path / "nan.pth")
    encoder = ResNetEncoder("resnet18", tmp_path / "nan.pth")
    with pytest.raises(UserError, match="features that are not finite"):
        encoder.encode([encoder.prepare(draw_photo(0, 0))])


def test_a_classifier_is_an_encoder(trained):
    encoder = build_encoder(str(trained / "checkpoints" / "best.ckpt"))
    assert isinstance(encoder, ClassifierEncoder)
    images = [encoder.prepare(draw_photo(n % 3, n).convert("L")) for n in range(3)]
    vectors = encoder.encode(images)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    regions = encoder.similarity_map(images[0], vectors[1])
    np.testing.assert_allclose(regions.sum(), vectors[0] @ vectors[1], rtol=1e-4)
    assert encoder.box(30, 20) == (0, 0, 30, 20)
    with pytest.raises(UserError, match="ClassifierEncoder has no option --layer: leave it out"):
        build_encoder(str(trained / "checkpoints" / "best.ckpt"), layer="layer3")


def test_a_device_is_refused_by_an_encoder_that_takes_none():
    assert build_encoder("tests.small_encoder.SmallEncoder").device.type == "cpu"
    with pytest.raises(UserError, match="SmallEncoder has no option --device: leave it out"):
        build_encoder("tests.small_encoder.SmallEncoder", device="cpu")


def test_a_network_whose_features_are_no_average_cannot_be_explained(tmp_path):
    from lightning_modules.networks.reference_cnn import ReferenceCNN

    with pytest.raises(UserError, match="the features of ReferenceCNN are not an average over positions"):
        ReferenceCNN(["a", "b"], 1, 32).forward_features(torch.zeros(1, 1, 32, 32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_neighbours_that_full_precision_finds(shared):
    from datamodules.images import find_images, read_image

    weights = shared / "weights" / "resnet18_to_layer3.pth"
    vectors = {}
    for device in ("cpu", "cuda"):
        encoder = ResNetEncoder("resnet18", weights, layer="layer3", device=device)
        paths = find_images(shared / "data" / "photos")[::5]
        vectors[device] = encoder.encode([encoder.prepare(read_image(path, 3)) for path in paths])
    nearest = {device: (v @ v.T - 2 * np.eye(len(v))).argmax(axis=1) for device, v in vectors.items()}
    assert (nearest["cpu"] == nearest["cuda"]).mean() > 0.99


@pytest.fixture(scope="session")
def timm_weights(tmp_path_factory):
    """Weights of small networks of timm that have learnt nothing."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("timm")
    for name in ("test_resnet", "test_efficientnet", "test_vit"):
        torch.save(timm.create_model(name).state_dict(), folder / f"{name}.pth")
    return folder


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_vit"])
def test_any_network_of_timm_is_an_encoder(photos, timm_weights, name):
    encoder = build_encoder(f"timm:{name}", weights=str(timm_weights / f"{name}.pth"))
    again = rebuild_encoder(describe_encoder(encoder))
    assert again.identity == encoder.identity
    images = [encoder.prepare(read_image(path, 3)) for path in sorted(photos.glob("*/*.jpg"))]
    vectors = encoder.encode(images)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(again.encode(images), vectors)
    if name == "test_vit":
        with pytest.raises(UserError, match="features of timm:test_vit are not an average over positions"):
            encoder.similarity_map(images[0], vectors[1])
    else:
        assert encoder.similarity_map(images[0], vectors[1]).sum() == pytest.approx(vectors[0] @ vectors[1], abs=1e-4)


def test_a_network_that_timm_does_not_have_is_a_clear_error(timm_weights):
    with pytest.raises(UserError, match="timm has no network resnet19"):
        build_encoder("timm:resnet19")
    with pytest.raises(UserError, match=r"test_vit.pth: not the weights of test_resnet"):
        build_encoder("timm:test_resnet", weights=str(timm_weights / "test_vit.pth"))
    with pytest.raises(UserError, match="TimmEncoder has no option --layer: leave it out"):
        build_encoder("timm:test_resnet", layer="layer1")
