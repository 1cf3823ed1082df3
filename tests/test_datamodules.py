import functools
import gzip
import http.server
import shutil
import threading
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from lightning import Trainer
from PIL import Image

from datamodules import ImageFolderDataModule, MNISTDataModule, OptDigitsDataModule, UserError, image_folder
from datamodules.loading import EvenBatchSampler, ShardSampler, batches
from tests.conftest import draw_digit


def write_idx(path, values):
    """Write an array of bytes as the MNIST files are written."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(header + values.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path):
    """The four files of MNIST, with 100 + 20 drawn digits."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for subset, count in (("train", 100), ("t10k", 20)):
        labels = np.arange(count) % 10
        images = np.stack([np.asarray(draw_digit(i % 3, i, 28)) for i in range(count)])
        write_idx(raw / f"{subset}-images-idx3-ubyte", images)
        write_idx(raw / f"{subset}-labels-idx1-ubyte", labels)
    return tmp_path / "data"


def set_up(data, stage="fit"):
    data.prepare_data()
    data.setup(stage)
    return data


def test_a_folder_per_class_in_natural_order_hidden_ones_ignored(digits):
    (digits / "10_digits").mkdir()
    draw_digit(1, 100).save(digits / "10_digits" / "a.png")
    draw_digit(1, 101).save(digits / "10_digits" / "b.png")
    (digits / ".ipynb_checkpoints").mkdir()
    (digits / "notes.txt").touch()
    data = set_up(ImageFolderDataModule(str(digits), image_size=20))
    assert data.class_names == ["0_digits", "1_digits", "2_digits", "10_digits"]
    assert len(data.train_set) + len(data.val_set) == 62


def test_batches_are_raw_pixels_with_their_labels(digits):
    data = set_up(ImageFolderDataModule(str(digits), image_size=20, batch_size=16))
    loader = data.val_dataloader()
    (batch,) = list(loader)
    assert batch.images.shape == (12, 1, 20, 20)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    seen = torch.cat([batch.indices for batch in data.train_dataloader()])
    assert sorted(seen.tolist()) == list(range(48))


def test_the_split_is_the_same_in_every_stage_and_object(digits):
    first = set_up(ImageFolderDataModule(str(digits), image_size=20))
    again = set_up(ImageFolderDataModule(str(digits), image_size=10, batch_size=3), "validate")
    again.setup("test")
    assert first.val_set.names == again.val_set.names
    assert again.test_set.names == first.val_set.names
    assert not set(first.train_set.names) & set(first.val_set.names)


def test_a_written_split_can_be_used_again(digits, tmp_path):
    first = set_up(ImageFolderDataModule(str(digits), split_seed=1))
    first.save_split(tmp_path / "split.csv")
    again = set_up(ImageFolderDataModule(str(digits), split_file=str(tmp_path / "split.csv")))
    assert again.val_set.names == first.val_set.names
    assert again.val_set.names != set_up(ImageFolderDataModule(str(digits))).val_set.names


def test_classes_are_a_subset_in_the_order_given(digits):
    data = set_up(ImageFolderDataModule(str(digits), image_size=20, classes=["2_digits", "0_digits"]))
    assert data.class_names == ["2_digits", "0_digits"]
    assert {name[0] for name, label in zip(data.val_set.names, data.val_set.labels, strict=True) if label == 0} == {"2"}


def test_images_of_some_classes_are_kept_beside_those_of_all(digits, cache_home):
    for classes in (None, ["2_digits", "0_digits"]):
        set_up(ImageFolderDataModule(str(digits), image_size=20, classes=classes))
    assert len(list(cache_home.rglob("*.cache"))) == 2


def test_a_test_folder_is_used_whole(digits, tmp_path):
    shutil.copytree(digits, tmp_path / "test")
    data = set_up(ImageFolderDataModule(str(digits), str(tmp_path / "test"), image_size=20), "test")
    assert len(data.test_set) == 60


def test_mnist_keeps_its_official_test_set(mnist):
    data = set_up(MNISTDataModule(str(mnist), classes=[0, 1, 2]))
    assert data.class_names == ["0", "1", "2"]
    assert (data.image_size, data.in_channels) == (28, 1)
    assert len(data.train_set) + len(data.val_set) == 30
    data.setup("test")
    assert len(data.test_set) == 6
    assert data.test_set.names[0] == "t10k/00000"


def test_mnist_that_cannot_be_downloaded_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "index.html").write_text("no such thing here")
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [tmp_path.as_uri() + "/"])
    with pytest.raises(UserError, match=r"can't be downloaded.*copy train-images-idx3-ubyte.*--data.root"):
        MNISTDataModule(str(tmp_path / "data")).prepare_data()


def test_mnist_is_downloaded_where_it_can_be(mnist, tmp_path, monkeypatch):
    resources = []
    for file in sorted((mnist / "MNIST" / "raw").iterdir()):
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        resources.append((f"{file.name}.gz", None))
    serve = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        monkeypatch.setattr("torchvision.datasets.MNIST.resources", resources)
        data = set_up(MNISTDataModule(str(tmp_path / "fresh"), classes=[0, 1]))
        server.shutdown()
    assert len(data.train_set) + len(data.val_set) == 20


def test_damaged_mnist_files_are_a_clear_error(mnist):
    file = mnist / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged MNIST files"):
        set_up(MNISTDataModule(str(mnist)))


def test_optdigits_are_the_embedded_default():
    data = set_up(OptDigitsDataModule())
    assert len(data.train_set) + len(data.val_set) == 1797
    assert len(data.val_set) == 359
    batch = data.train_set.batch([0, 1])
    assert batch.images.shape == (2, 1, 8, 8)
    assert batch.images.max() == 255


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 9, 10, 11, 64])
def test_processes_share_the_samples_without_repeats_in_as_many_batches(world_size, count):
    shares = []
    for rank in range(world_size):
        sampler = EvenBatchSampler(ShardSampler(count, rank, world_size, shuffle_seed=3), batch_size=4)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler) == len(shares[0])
    sizes = [len(batch) for share in shares for batch in share]
    assert max(sizes) <= 4
    assert max(sizes) - min(sizes) <= 1
    assert sorted(index for share in shares for batch in share for index in batch) == list(range(count))


def test_the_order_changes_with_the_epoch_and_follows_from_the_seed():
    sampler = ShardSampler(100, 0, 1, shuffle_seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(ShardSampler(100, 0, 1, shuffle_seed=2)) != first


def test_a_batch_is_fetched_as_one(digits):
    data = set_up(ImageFolderDataModule(str(digits), image_size=20))
    one, many = data.train_set[3], data.train_set.batch([3, 5])
    assert torch.equal(one.images, many.images[:1])
    assert [len(batch.labels) for batch in batches(data.train_set, 20)] == [16, 16, 16]


def test_training_images_look_different_each_epoch_and_the_same_in_each_run(digits):
    data = set_up(ImageFolderDataModule(str(digits), image_size=20))
    batch = data.train_set.batch(range(8))
    first, second = data.augment(batch, epoch=0).images, data.augment(batch, epoch=1).images
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)
    alone = data.augment(data.train_set.batch([5]), epoch=0).images
    torch.testing.assert_close(alone[0], first[5])
    plain = ImageFolderDataModule(str(digits), augmentation=None)
    assert torch.equal(plain.augment(batch, epoch=0).images, batch.images)


def test_unreadable_images_end_the_command_with_the_list_of_them(digits):
    (digits / "0_digits" / "3.png").write_bytes(b"")
    (digits / "2_digits" / "x.jpg").write_text("text")
    data = ImageFolderDataModule(str(digits), image_size=20)
    with pytest.raises(UserError, match=r"2 of 61 images") as caught:
        data.prepare_data()
    assert "0_digits/3.png: empty file" in str(caught.value)
    assert "2_digits/x.jpg: not an image of a format that is read" in str(caught.value)
    assert "--data.on_unreadable skip" in str(caught.value)


def test_unreadable_images_can_be_skipped(digits, caplog):
    (digits / "0_digits" / "3.png").write_bytes(b"")
    with caplog.at_level("INFO"):
        data = set_up(ImageFolderDataModule(str(digits), image_size=20, on_unreadable="skip"))
    assert len(data.train_set) + len(data.val_set) == 59
    assert "0_digits/3.png" not in data.train_set.names + data.val_set.names
    assert "0_digits/3.png: empty file" in caplog.text


def test_colour_is_kept_where_there_is_some_unless_told_otherwise(digits, caplog):
    image = draw_digit(0, 0).convert("RGB")
    with caplog.at_level("INFO"):
        image.putpixel((0, 0), (255, 0, 0))  # of a hundredth of the pixels or less
        image.save(digits / "1_digits" / "0.png")
        grey = set_up(ImageFolderDataModule(str(digits), image_size=20))
        assert grey.train_set.batch([0]).images.shape == (1, 1, 20, 20)
        assert "colour" not in caplog.text
        image.paste((255, 0, 0), (0, 0, 5, 5))
        image.save(digits / "1_digits" / "0.png")
        colour = set_up(ImageFolderDataModule(str(digits), image_size=20))
        assert colour.train_set.batch([0]).images.shape == (1, 3, 20, 20)
        assert colour.hparams["in_channels"] == 3
        assert "--data.in_channels 1" in caplog.text
    for channels in (1, 3):
        told = set_up(ImageFolderDataModule(str(digits), image_size=20, in_channels=channels))
        assert told.train_set.batch([0]).images.shape == (1, channels, 20, 20)


def test_a_first_image_that_is_broken_is_passed_over_when_colour_is_looked_for(digits):
    (digits / "0_digits" / "0.png").write_bytes(b"")
    assert ImageFolderDataModule(str(digits)).in_channels == 1


@pytest.mark.parametrize(("processes", "mapped"), [(1, False), (2, True)])
def test_the_share_of_memory_is_that_of_all_processes_of_a_machine(digits, processes, mapped):
    share = 1.5 * 60 * 20 * 20 / psutil.virtual_memory().total
    data = ImageFolderDataModule(str(digits), image_size=20, max_ram_share=share)
    data.trainer = Trainer(accelerator="cpu", strategy="ddp", devices=processes, logger=False)
    assert isinstance(set_up(data).train_set.collection.pixels, np.memmap) == mapped


def make_missing(root):
    shutil.rmtree(root)


def make_file(root):
    shutil.rmtree(root)
    root.touch()


def make_empty(root):
    shutil.rmtree(root)
    root.mkdir()


def make_flat(root):
    for path in list(root.glob("*/*.png")):
        path.rename(root / f"{path.parent.name}{path.name}")
    for folder in root.glob("*_digits"):
        folder.rmdir()


def split_in_part(root):
    whole = root.rename(root.with_name("whole"))
    root.mkdir()
    whole.rename(root / "train")
    draw_digit(0, 0).save(make_folder(root / "test") / "0.png")


def make_folder(path):
    path.mkdir()
    return path


def leave_one_class(root):
    shutil.rmtree(root / "0_digits")
    shutil.rmtree(root / "1_digits")


def empty_a_class(root):
    make_empty(root / "1_digits")


def write_texts(root):
    for path in root.glob("1_digits/*"):
        path.rename(path.with_suffix(".txt"))


def break_a_class(root):
    for path in root.glob("1_digits/*"):
        path.write_text("text")


def leave_one_image(root):
    for path in sorted(root.glob("1_digits/*"))[1:]:
        path.unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            make_missing,
            "digits: no such file or directory; name the folder that holds the class folders",
        ),
        (make_file, "digits: not a directory"),
        (make_empty, "no class folders; expected a folder per class"),
        (make_flat, "no class folders; expected a folder per class"),
        (split_in_part, "digits looks split, but test is no subset with class folders in it: move it out, or name"),
        (leave_one_class, "at least two classes, got 2_digits"),
        (empty_a_class, "1_digits: no images in this folder"),
        (write_texts, "1_digits: no images in this folder"),
        (break_a_class, "1_digits: no image in this class folder can be read"),
        (leave_one_image, "no image is left to validate on of class 1_digits"),
    ],
)
def test_a_folder_that_cannot_be_trained_on_is_a_clear_error(digits, spoil, message):
    spoil(digits)
    with pytest.raises(UserError, match=message):
        set_up(ImageFolderDataModule(str(digits), image_size=20, on_unreadable="skip"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"classes": ["0_digits", "7_digits"]},
            "unknown class 7_digits: the classes here are 0_digits, 1_digits",
        ),
        ({"classes": ["0_digits"]}, "at least two classes, got 0_digits"),
        ({"classes": ["0_digits", "0_digits"]}, "names a class twice"),
        ({"val_fraction": 1.5}, r"val_fraction must lie in \(0, 1\), got 1.5"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"in_channels": 2}, r"in_channels must be 1 \(grey\) or 3 \(colour\), got 2"),
        ({"image_size": 0}, "image_size must be at least 1 pixel, got 0"),
        ({"on_unreadable": "ignore"}, "on_unreadable must be error or skip, got 'ignore'"),
    ],
)
def test_an_argument_out_of_range_is_a_clear_error(digits, options, message):
    with pytest.raises(UserError, match=message):
        set_up(ImageFolderDataModule(str(digits), **options))


def test_a_test_folder_needs_the_same_classes(digits, tmp_path):
    test = tmp_path / "test"
    shutil.copytree(digits, test)
    (test / "0_digits").rename(test / "7_digits")
    data = ImageFolderDataModule(str(digits), str(test), image_size=20)
    with pytest.raises(UserError, match="test lacks the class folder 0_digits"):
        data.load_test()
    shutil.copytree(digits / "0_digits", test / "0_digits")
    with pytest.raises(UserError, match="test has the unknown class folder 7_digits"):
        data.load_test()


def test_a_test_folder_is_another_one_than_is_trained_on(digits):
    data = ImageFolderDataModule(str(digits), str(digits / ".." / "digits"))
    for look in (data.prepare_data, data.load_test):
        with pytest.raises(UserError, match=r"test_root .*digits/../digits is the folder that is trained on: name ano"):
            look()


def test_classes_that_a_test_folder_lacks_are_told_before_images_are_decoded(digits, tmp_path, cache_home):
    shutil.copytree(digits, tmp_path / "test")
    shutil.rmtree(tmp_path / "test" / "1_digits")
    with pytest.raises(UserError, match="test lacks the class folder 1_digits"):
        ImageFolderDataModule(str(digits), str(tmp_path / "test"), image_size=20).prepare_data()
    assert list(cache_home.iterdir()) == []


def test_the_current_folder_may_be_validated_on(digits, tmp_path, monkeypatch):
    shutil.copytree(digits, tmp_path / "val")
    draw_digit(0, 100).save(digits / "0_digits" / "100.png")
    monkeypatch.chdir(tmp_path / "val")
    data = set_up(ImageFolderDataModule("../digits", val_root=".", image_size=20))
    assert (len(data.train_set), len(data.val_set)) == (61, 60)


def test_large_images_are_not_kept_large_to_be_looked_at(digits):
    Image.new("RGB", (4000, 3000), (200, 30, 40)).save(digits / "0_digits" / "0.png")
    data = ImageFolderDataModule(str(digits))
    assert [image.size for image in data.first_images] == [(364, 273), (20, 20), (20, 20)]
    assert data.in_channels == 3
    for size in (299, 300, 2999, 3000):  # whether one is made smaller can still be told
        data = ImageFolderDataModule(str(digits), image_size=size)
        assert any(min(image.size) > size for image in data.first_images) == (size < 3000)


def test_the_class_folders_are_not_listed_for_each_image(digits, tmp_path, monkeypatch):
    data = set_up(ImageFolderDataModule(str(digits)))
    listed = []
    original = image_folder.class_folders
    monkeypatch.setattr(image_folder, "class_folders", lambda root: listed.append(root) or original(root))
    data.save_split(tmp_path / "split.csv")
    assert len(listed) == 1


def test_what_shows_no_class_is_not_tested_on(digits):
    class WithOutliers(OptDigitsDataModule):
        def load_test(self):
            collection = self.load()
            return replace(collection, labels=np.where(np.arange(len(collection.labels)) < 7, -1, collection.labels))

    data = set_up(WithOutliers(), "test")
    assert len(data.test_set) == 1790
    assert data.test_set.labels.min() == 0


def test_the_real_digits_are_split_as_in_the_reference(shared):
    data = set_up(ImageFolderDataModule(str(shared / "data" / "hand_written_digits")))
    assert (len(data.train_set), len(data.val_set)) == (3727, 931)
