import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from datamodules import Augmentation, CorruptingAugmentation, TorchvisionAugmentation, UserError
from datamodules.augmentation import NODES, bend
from tests.conftest import TINY
from tests.test_cli import assert_same_weights, run

STRONG = Augmentation(degrees=40, translate=(0.2, 0.1), scale=(0.7, 1.4), contrast=0.5)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 28, 28), (1, 40, 25), (3, 25, 40)])
def test_each_image_equals_torchvision_with_the_same_parameters(shape):
    images = torch.randint(0, 256, (8, *shape), dtype=torch.uint8)
    parameters = STRONG.draw(seed=1, epoch=2, count=8)
    augmented = STRONG(images, parameters)
    height, width = shape[1:]
    for image, result, (angle, x, y, zoom, contrast) in zip(images, augmented, parameters.tolist(), strict=True):
        expected = tv.affine(
            image.float() / 255,
            angle=angle,
            translate=[x * width, y * height],
            scale=zoom,
            shear=[0.0, 0.0],
            interpolation=InterpolationMode.BILINEAR,
        )
        expected = tv.adjust_contrast(expected, contrast)
        torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 25, 40)])
def test_each_image_is_bent_as_torchvision_bends_it(shape):
    still = {"degrees": 0, "translate": (0, 0), "scale": (1, 1), "contrast": 0}
    augmentation = Augmentation(**still, elastic=0.1)
    images = torch.randint(0, 256, (8, *shape), dtype=torch.uint8)
    parameters = augmentation.draw(seed=1, epoch=2, count=8)
    moved = bend(parameters[:, 5:].view(-1, 2, NODES, NODES), *shape[1:]).permute(0, 2, 3, 1)
    assert moved.abs().amax(dim=(1, 2, 3)).min() > 0.1
    for image, result, displacement in zip(images, augmentation(images, parameters), moved, strict=True):
        expected = tv.elastic(image.float() / 255, displacement[None], InterpolationMode.BILINEAR)
        torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)


def test_the_points_of_the_grid_are_moved_as_far_as_they_are_said_to_be():
    nodes = torch.rand(3, 2, NODES, NODES)
    moved = bend(nodes, 4 * NODES - 3, 8 * NODES - 7)
    torch.testing.assert_close(moved[:, :, ::4, ::8], 2 * nodes)


def test_an_image_is_bent_after_it_is_rotated():
    y, x = torch.meshgrid(torch.linspace(-3, 3, 160), torch.linspace(-3, 3, 160), indexing="ij")
    smooth = (255 * torch.exp(-((x - 0.8) ** 2) - 2 * y**2)).round().to(torch.uint8).expand(8, 1, -1, -1)
    both = Augmentation(degrees=40, translate=(0.1, 0.1), scale=(0.8, 1.2), contrast=0, elastic=0.05)
    parameters = both.draw(0, 0, 8)
    moved = bend(parameters[:, 5:].view(-1, 2, NODES, NODES), 160, 160).permute(0, 2, 3, 1)
    rotated = Augmentation(contrast=0)(smooth, parameters)
    for result, image, displacement in zip(both(smooth, parameters), rotated, moved, strict=True):
        expected = tv.elastic(image, displacement[None], InterpolationMode.BILINEAR)
        torch.testing.assert_close(result, expected, atol=0.003, rtol=0)


def test_what_comes_into_view_is_filled():
    white = torch.full((1, 1, 20, 20), 255, dtype=torch.uint8)
    shifted = torch.tensor([[0.0, 0.5, 0.0, 1.0, 1.0]])
    assert Augmentation(fill=1.0)(white, shifted).min() == 1
    assert Augmentation(fill=0.0)(white, shifted)[..., :8].max() == 0


def test_parameters_lie_in_their_ranges_and_fill_them():
    parameters = STRONG.draw(seed=0, epoch=0, count=10_000)
    low = torch.tensor([-40, -0.2, -0.1, 0.7, 0.5])
    high = torch.tensor([40, 0.2, 0.1, 1.4, 1.5])
    assert (parameters >= low).all()
    assert (parameters <= high).all()
    assert (parameters.mean(dim=0) - (low + high) / 2).abs().max() < 1
    torch.testing.assert_close(parameters.amin(dim=0), low, atol=0.1, rtol=0.01)
    torch.testing.assert_close(parameters.amax(dim=0), high, atol=0.1, rtol=0.01)


def test_parameters_follow_from_seed_epoch_and_sample():
    first = STRONG.draw(seed=1, epoch=3, count=50)
    assert torch.equal(first, STRONG.draw(seed=1, epoch=3, count=50))
    assert not torch.equal(first, STRONG.draw(seed=1, epoch=4, count=50))
    assert not torch.equal(first, STRONG.draw(seed=2, epoch=3, count=50))
    assert len(first.unique(dim=0)) == 50


def test_all_copies_of_an_image_in_a_batch_differ():
    image = torch.randint(0, 256, (1, 1, 20, 20), dtype=torch.uint8)
    augmented = Augmentation()(image.repeat(16, 1, 1, 1), Augmentation().draw(0, 0, 16))
    assert len(augmented.flatten(1).unique(dim=0)) == 16


def test_nothing_is_ever_flipped():
    images = torch.zeros(64, 1, 20, 20, dtype=torch.uint8)
    images[:, :, 3:9, 11:17] = 255  # a block above and to the right of the centre
    augmentation = Augmentation(degrees=20, translate=(0, 0))
    augmented = augmentation(images, augmentation.draw(0, 0, 64))[:, 0]
    top_right = augmented[:, :10, 10:].sum(dim=(1, 2))
    assert (top_right > 0.7 * augmented.sum(dim=(1, 2))).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"degrees": -1}, r"degrees must lie in \[0, 180\], got -1"),
        ({"translate": (0.1, 2)}, r"translate must be two fractions in \[0, 1\]"),
        ({"scale": (1.2, 0.8)}, "scale must be"),
        ({"contrast": 3}, r"contrast must lie in \[0, 1\], got 3"),
        ({"elastic": -0.1}, r"elastic must lie in \[0, 1\], got -0.1"),
        ({"fill": 255}, r"fill must lie in \[0, 1\], got 255"),
    ],
)
def test_a_range_that_makes_no_sense_is_a_clear_error(options, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**options)


def test_transforms_of_torchvision_vary_each_image_by_its_own_seed():
    augmentation = TorchvisionAugmentation([{"RandomRotation": {"degrees": 40}}, {"ColorJitter": {"contrast": 0.5}}])
    images = torch.randint(0, 256, (1, 1, 20, 20), dtype=torch.uint8).repeat(4, 1, 1, 1)
    parameters = augmentation.draw(7, 3, 4)
    state = torch.get_rng_state()
    augmented = augmentation(images, parameters)
    assert torch.equal(torch.get_rng_state(), state)
    assert (augmented.shape, augmented.dtype) == ((4, 1, 20, 20), torch.float32)
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    assert not torch.equal(augmented[0], augmented[1])
    torch.testing.assert_close(augmentation(images[1:], augmentation.draw(7, 3, 4)[1:]), augmented[1:])
    assert not torch.equal(augmentation.draw(7, 4, 4), parameters)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([{"RandomRotatoin": {}}], "torchvision.transforms.v2 has no RandomRotatoin"),
        ([{"functional": {}}], "has no functional"),
        ([{"RandomRotation": {"angle": 4}}], "RandomRotation: .*angle"),
        ([{"RandomRotation": {"degrees": -4}}], "RandomRotation: "),
        (
            ["RandomRotation"],
            r"transforms: must be names with their arguments, such as RandomRotation: {degrees: 20}, got 'RandomR",
        ),
    ],
)
def test_a_transform_that_torchvision_does_not_have_is_a_clear_error(transforms, message):
    with pytest.raises(UserError, match=message):
        TorchvisionAugmentation(transforms)


def test_transforms_must_take_pixels_of_bytes():
    augmentation = TorchvisionAugmentation([{"Normalize": {"mean": [0.5], "std": [0.5]}}])
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"transforms: don't suit images of uint8 pixels: .*float"):
        augmentation(images, augmentation.draw(0, 0, 2))


@pytest.mark.parametrize(("transform", "given"), [({"ToPILImage": {}}, "Image"), ({"FiveCrop": {"size": 6}}, "tuple")])
def test_transforms_must_give_pixels(transform, given):
    augmentation = TorchvisionAugmentation([transform])
    with pytest.raises(
        UserError, match=rf"^augmentation.transforms: must give one image's pixels, a tensor, not .*{given}$"
    ):
        augmentation(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), augmentation.draw(0, 0, 2))


def test_transforms_must_leave_images_their_size():
    augmentation = TorchvisionAugmentation([{"CenterCrop": {"size": 8}}])
    with pytest.raises(UserError, match="must leave images their size"):
        augmentation(torch.zeros(2, 1, 20, 20, dtype=torch.uint8), augmentation.draw(0, 0, 2))


CORRUPTING = CorruptingAugmentation(degrees=0, translate=(0, 0), scale=(1, 1), contrast=0, share=1)


def test_nothing_is_corrupted_of_a_share_of_none():
    images = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8)
    plain = Augmentation(elastic=0.1)
    none = CorruptingAugmentation(elastic=0.1, share=0)
    torch.testing.assert_close(none(images, none.draw(1, 2, 8)), plain(images, plain.draw(1, 2, 8)), atol=0, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("share", [0.25, 1])
def test_corrupted_images_stay_images(channels, share):
    augmentation = CorruptingAugmentation(share=share)
    images = torch.randint(0, 256, (64, channels, 20, 30), dtype=torch.uint8)
    corrupted = augmentation(images, augmentation.draw(0, 0, 64))
    assert corrupted.shape == images.shape
    assert corrupted.min() >= 0
    assert corrupted.max() <= 1
    assert not corrupted.isnan().any()


def test_each_kind_of_corruption_is_on_its_share_of_the_images():
    images = torch.zeros(4000, 1, 6, 6, dtype=torch.uint8)
    images[:, :, 2:4, 2:4] = 200
    some = CorruptingAugmentation(degrees=0, translate=(0, 0), scale=(1, 1), contrast=0, share=0.25)
    corrupted = some(images, some.draw(0, 0, 4000))
    untouched = ((corrupted - images / 255).abs().amax(dim=(1, 2, 3)) < 1e-5).float().mean()
    assert 0.75**6 - 0.03 < untouched < 0.75**6 + 0.06  # lines may miss an image, and the inverted part be nothing


def test_how_an_image_is_corrupted_follows_from_its_own_parameters():
    images = torch.randint(0, 256, (16, 1, 28, 28), dtype=torch.uint8)
    parameters = CORRUPTING.draw(3, 1, 16)
    whole = CORRUPTING(images, parameters)
    for row in (0, 7, 15):
        torch.testing.assert_close(whole[row : row + 1], CORRUPTING(images[row : row + 1], parameters[row : row + 1]))
    assert not torch.equal(whole, CORRUPTING(images, CORRUPTING.draw(3, 2, 16)))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_on_corrupted_images_resumes_to_the_same_weights(workplace, capsys, precision):
    config = ["fit", "--config", TINY, "--model.recipe.schedule", "constant", "--trainer.precision", precision]
    config += ["--data.augmentation", "CorruptingAugmentation", "--data.augmentation.share", "0.5"]
    run(capsys, *config, "--name", "whole")
    run(capsys, *config, "--name", "part", "--trainer.max_epochs", "1")
    last = {name: f"runs/{name}/version_0/checkpoints/last.ckpt" for name in ("whole", "part", "rest")}
    run(capsys, *config, "--name", "rest", "--ckpt_path", last["part"])
    assert_same_weights(last["whole"], last["rest"])
