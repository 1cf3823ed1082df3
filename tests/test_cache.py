import contextlib
import multiprocessing
import os
import resource
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from datamodules import cache as cache_module
from datamodules.cache import load_images
from datamodules.errors import UserError
from datamodules.images import find_images, read_image, to_pixels
from tests.conftest import draw_digit


@pytest.fixture
def load(digits, tmp_path):
    def load(size=20, max_ram_share=1.0, channels=1, classes=()):
        return load_images(digits, find_images(digits), size, channels, tmp_path / "cache", max_ram_share, classes)

    return load


@pytest.fixture
def decoded(monkeypatch):
    """Counts the images that are decoded."""
    paths = []
    original = cache_module.decode_image

    def count(data, path, channels):
        paths.append(path)
        return original(data, path, channels)

    monkeypatch.setattr(cache_module, "decode_image", count)
    return paths


def cache_file(tmp_path):
    (file,) = (tmp_path / "cache").iterdir()
    return file


def test_pixels_are_those_of_the_files_in_their_order(load, digits):
    images = load()
    expected = [to_pixels(read_image(path, 1), 20) for path in find_images(digits)]
    np.testing.assert_array_equal(images.pixels, expected)
    assert images.pixels.dtype == np.uint8


def test_a_second_start_decodes_nothing(load, decoded):
    first = load()
    assert len(decoded) == 60
    second = load()
    assert len(decoded) == 60
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.digests, second.digests)


def test_too_many_pixels_for_the_memory_are_mapped(load):
    in_memory, mapped = load(max_ram_share=1.0), load(max_ram_share=0.0)
    assert not isinstance(in_memory.pixels, np.memmap)
    assert isinstance(mapped.pixels, np.memmap)
    np.testing.assert_array_equal(in_memory.pixels, mapped.pixels)
    np.testing.assert_array_equal(in_memory.digests, mapped.digests)


@pytest.mark.parametrize("change", ["content", "mtime", "added", "removed", "renamed"])
def test_a_stale_cache_is_rebuilt_in_place(load, digits, tmp_path, change):
    load()
    path = digits / "0_digits" / "0.png"
    if change == "content":
        draw_digit(2, 7).save(path)
    elif change == "mtime":
        os.utime(path, ns=(1, 1))
    elif change == "added":
        draw_digit(0, 99).save(digits / "0_digits" / "99.png")
    elif change == "removed":
        path.unlink()
    else:
        path.rename(path.with_name("100.png"))
    expected = [to_pixels(read_image(path, 1), 20) for path in find_images(digits)]
    np.testing.assert_array_equal(load().pixels, expected)
    cache_file(tmp_path)


@pytest.mark.parametrize("options", [{"size": 16}, {"channels": 3}, {"classes": ["0_digits", "1_digits"]}])
def test_other_options_have_another_cache(load, tmp_path, options):
    load()
    load(**options)
    assert len(list((tmp_path / "cache").iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "half", "no end", "other file", "garbage"])
def test_a_broken_cache_is_rebuilt(load, tmp_path, damage):
    expected = load().pixels
    file = cache_file(tmp_path)
    whole = file.read_bytes()
    damaged = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "no end": whole[:-1],
        "other file": b"\x89PNG" + whole,
        "garbage": whole[:200] + bytes(300) + whole[500:],
    }
    file.write_bytes(damaged[damage])
    np.testing.assert_array_equal(load().pixels, expected)


def test_unreadable_files_are_listed_and_have_no_row(load, digits, tmp_path, monkeypatch):
    (digits / "1_digits" / "3.png").write_text("text")
    images = load()
    assert len(images.pixels) == len(images.digests) == 59
    (index,) = images.errors
    assert find_images(digits)[index].name == "3.png"
    assert "3.png" in images.errors[index]
    assert load().errors == images.errors
    monkeypatch.chdir(digits)
    assert load_images(Path(), find_images(Path()), 20, 1, tmp_path / "cache", 0.25).errors == {
        index: images.errors[index].replace(f"{digits}/", "")
    }


def test_a_file_that_could_not_be_read_is_tried_again(digits, load):
    broken = digits / "1_digits" / "3.png"
    status = broken.stat()
    whole = broken.read_bytes()
    broken.write_bytes(bytes(len(whole)))  # as what can't be read: size and time stay the same
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(load().errors) == 1
    broken.write_bytes(whole)
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert load().errors == {}


def test_a_cache_that_another_run_replaces_at_once_is_a_clear_error(load, digits, tmp_path, monkeypatch):
    original = cache_module.atomic_write

    @contextlib.contextmanager
    def write_and_lose(path):
        with original(path) as file:
            yield file
        monkeypatch.setattr(cache_module, "atomic_write", original)
        load_images(digits, find_images(digits)[:5], 20, 1, tmp_path / "cache", 1.0)  # of fewer classes

    monkeypatch.setattr(cache_module, "atomic_write", write_and_lose)
    with pytest.raises(UserError, match=r"another run has just decoded other images of .*digits: start again"):
        load()


def test_several_processes_may_build_it_at_once(digits, tmp_path):
    processes = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(4, processes) as pool:
        arguments = (digits, find_images(digits), 20, 1, tmp_path / "cache", 1.0)
        results = [future.result() for future in [pool.submit(load_images, *arguments) for _ in range(4)]]
    for images in results:
        np.testing.assert_array_equal(images.pixels, results[0].pixels)
    cache_file(tmp_path)


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(load, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(UserError, match=r"can't keep the decoded images.*--data.cache_dir"):
            load()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_a_clear_error(digits, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"not a directory.*--data.cache_dir"):
        load_images(digits, find_images(digits), 20, 1, tmp_path / "file" / "cache", 1.0)
