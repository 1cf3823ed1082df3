"""A classifier recognises what is drawn, and shows what it resembles."""

import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.dataset import OUTLIER
from datamodules.errors import UserError
from retrieval.app.batching import BatchingEncoder
from retrieval.app.recognition import Recogniser
from retrieval.encoders.registry import build_encoder, describe_encoder
from tests.conftest import draw_digit
from tests.small_encoder import SmallEncoder


def test_training_images_that_are_alike_are_shown(trained):
    recogniser = Recogniser(trained / "checkpoints" / "best.ckpt")
    assert "looked through" in recogniser.note
    recogniser.wait()
    assert recogniser.note == ""
    result = recogniser.recognise(Image.fromarray(recogniser.train_set[5].images[0, 0].numpy()))
    assert list(result.probabilities) == ["0_digits", "1_digits", "2_digits"]
    assert sum(result.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert result.probabilities[result.best] == max(result.probabilities.values())
    assert result.seen.shape == result.similar[0].pixels.shape
    distances = [one.distance for one in result.similar]
    assert len(distances) == 4
    assert distances == sorted(distances)
    assert recogniser.recognise(Image.new("RGB", (99, 99), "white")) is None


def test_a_training_image_that_shows_no_class_is_none(trained):
    recogniser = Recogniser(trained / "checkpoints" / "best.ckpt")
    recogniser.wait()
    collection = recogniser.train_set.collection
    recogniser.train_set.collection = replace(collection, labels=np.full_like(collection.labels, OUTLIER))
    assert {one.label for one in recogniser.recognise(draw_digit(0, 99)).similar} == {"not a digit"}


def test_training_images_are_found_from_any_folder(trained, workplace, monkeypatch):
    (workplace / "elsewhere").mkdir()
    monkeypatch.chdir(workplace / "elsewhere")
    recogniser = Recogniser(trained / "checkpoints" / "best.ckpt")
    recogniser.wait()
    assert recogniser.note == ""
    assert len(recogniser.recognise(draw_digit(0, 99)).similar) == 4


def test_images_that_have_gone_leave_recognition(trained, workplace):
    shutil.rmtree(workplace / "digits")
    recogniser = Recogniser(trained / "checkpoints" / "best.ckpt")
    recogniser.wait()
    assert "training images aren't found" in recogniser.note
    result = recogniser.recognise(draw_digit(0, 99))
    assert result.similar == []
    assert set(result.probabilities) == {"0_digits", "1_digits", "2_digits"}


def test_something_else_than_a_classifier_is_a_clear_error(workplace):
    (workplace / "notes.ckpt").write_text("no network")
    with pytest.raises(UserError, match=r"notes\.ckpt"):
        Recogniser(workplace / "notes.ckpt")
    with pytest.raises(UserError, match="not an exported network"):
        Recogniser(workplace)


@pytest.fixture(params=[1, 2])
def torch_threads(request):
    """How many threads torch computes with."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_threads_share_batches_and_get_their_own_vectors(torch_threads):
    sizes, shares = [], []

    class Counting(SmallEncoder):
        def encode(self, images):
            sizes.append(len(images))
            shares.append(torch.get_num_threads())
            return super().encode(images)

    images = [np.full((3, 8, 8), 10 * number, np.uint8) for number in range(24)]
    for number, image in enumerate(images):
        image[0, :4] = 255 - number
    expected = SmallEncoder(batch_size=8).encode(images)
    encoder = BatchingEncoder(Counting(batch_size=64, seconds=0.05))  # takes an eighth at once, or a sixteenth
    assert encoder.box(4, 3) == (0, 0, 4, 3)
    found = {}

    def ask(number):
        found[number] = encoder.encode([images[number]])[0]

    threads = [threading.Thread(target=ask, args=[number]) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(np.stack([found[number] for number in range(24)]), expected, atol=1e-6)
    assert sum(sizes) == 24
    assert 1 < max(sizes) <= 8 // torch_threads
    assert min(shares) == 1
    assert torch.get_num_threads() == torch_threads
    encoder.encode(images[:1])
    assert shares[-1] == torch_threads  # alone, it has all of them


def test_the_page_sees_images_and_makes_an_index_as_the_encoder_itself_does():
    encoder = build_encoder("digits")
    shared = BatchingEncoder(encoder)
    assert shared.max_side == encoder.max_side
    assert shared.max_side is not None
    assert describe_encoder(shared) == describe_encoder(encoder)


def test_an_error_reaches_those_who_asked_and_no_others():
    class Failing(SmallEncoder):
        def encode(self, images):
            if any(image.max() == 255 for image in images):
                raise UserError("no good")
            return super().encode(images)

    encoder = BatchingEncoder(Failing())
    with pytest.raises(UserError, match="no good"):
        encoder.encode([np.full((3, 8, 8), 255, np.uint8)])
    assert encoder.encode([np.full((3, 8, 8), 9, np.uint8)]).shape == (1, 48)
