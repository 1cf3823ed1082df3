"""A collection, a classifier, and the page over both, being served."""

import shutil
import socket
from pathlib import Path

import pytest
from limits import RateLimitItemPerSecond
from playwright.sync_api import Page, sync_playwright

from lightning_modules.checkpoint import load_network
from lightning_modules.embedded import READER
from lightning_modules.networks import LineReader
from retrieval.app.batching import BatchingEncoder
from retrieval.app.page import build_page
from retrieval.app.recognition import Recogniser
from retrieval.app.search_tab import find_samples
from retrieval.app.server import serve
from retrieval.encoders.resnet import ResNetEncoder
from retrieval.index import ImageIndex
from tests.conftest import draw_photo, train_in

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
KINDS = ("sky", "grass", "sand")


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Twelve photographs in three class folders, and three query images beside them."""
    home = tmp_path_factory.mktemp("collection")
    for kind, name in enumerate(KINDS):
        (home / "photos" / name).mkdir(parents=True)
        for seed in range(4):
            draw_photo(kind, seed).save(home / "photos" / name / f"{seed}.jpg", quality=95)
    (home / "query_images").mkdir()
    for kind, name in enumerate(KINDS):
        draw_photo(kind, 30).save(home / "query_images" / f"{name}_30.jpg", quality=95)
    (home / "secret.txt").write_text("nobody's business")
    return home


def train(home: Path, *options: str) -> Path:
    """Train a network for a few seconds; returns its checkpoint."""
    runs = train_in(home, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", *options)
    return runs / "custom_cnn" / "version_0" / "checkpoints" / "best.ckpt"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that has seen the embedded digits once."""
    return train(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def index(collection, resnet_weights):
    index = ImageIndex.open(collection / "photos", ResNetEncoder("resnet18", resnet_weights))
    index.update()
    return index


@pytest.fixture(scope="module")
def recogniser(checkpoint):
    recogniser = Recogniser(checkpoint)
    recogniser.wait()
    return recogniser


@pytest.fixture(scope="module")
def address(collection, index, recogniser):
    """The page, being served."""
    shared = ImageIndex(index.folder, BatchingEncoder(index.encoder), index.location, index.store)
    samples = find_samples(collection / "query_images")
    page = build_page(shared, recogniser, samples, load_network(READER, LineReader))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrieval.app.server.MAX_REQUESTS", RateLimitItemPerSecond(1_000_000))  # tests ask in one go
        address = serve(page, "127.0.0.1", free_port(), None)
    yield address.rstrip("/")
    page.close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.fail("no Chromium here: `apt-get install chromium` or its like")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu-vsync"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page as it opens; nothing that it does may reach another machine, or fail in the browser."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    requested, failed = [], []
    page.on("request", lambda request: requested.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#query")
    yield page
    page.close()
    assert failed == []
    elsewhere = [url for url in requested if not url.startswith((address, "data:", "blob:"))]
    assert requested
    assert elsewhere == []


def upload(page: Page, *paths: Path, into: str = "query") -> None:
    page.set_input_files(f"#{into} input[type=file]", [str(path) for path in paths])
