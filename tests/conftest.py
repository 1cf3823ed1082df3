"""Drawn data, and the real data where they are present."""

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

# Small networks on two cores only lose by handing work to a second thread, and CI runs several processes at once.
os.environ["OMP_NUM_THREADS"] = "1"
# Or else a process that is started from one with an open connection to Milvus may be aborted before it begins.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "false"

import numpy as np
import pytest
from PIL import Image, ImageDraw

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where these run as a shell's background job

# The page's tests need packages that the others do without: `uv run --group browser pytest -m browser`.
collect_ignore = [] if find_spec("gradio") and find_spec("playwright") else ["browser"]


REPOSITORY = Path(__file__).parent.parent
SHARED = REPOSITORY.parent / "shared"


def draw_digit(digit: int, seed: int, size: int = 20) -> Image.Image:
    """A light 0, 1 or 2 on black, a little different for each seed."""
    generator = np.random.default_rng([digit, seed])
    shift = generator.uniform(-2, 2, 2)
    image = Image.new("L", (size * 4, size * 4))
    pen = ImageDraw.Draw(image)

    def at(*points: tuple[float, float]) -> list[tuple[float, float]]:
        return [((x + shift[0]) * size / 5, (y + shift[1]) * size / 5) for x, y in points]

    if digit == 0:
        pen.ellipse(at((6, 4), (14, 16)), outline=255, width=size // 3)
    elif digit == 1:
        pen.line(at((10, 3), (10, 17)), fill=255, width=size // 3)
    else:
        pen.line(at((6, 5), (14, 5), (6, 16), (14, 16)), fill=255, width=size // 3)
    grain = generator.integers(0, 30, (size, size))
    return Image.fromarray(np.clip(np.asarray(image.resize((size, size))) + grain, 0, 255).astype(np.uint8))


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    """Keep the decoded images of a test out of the user's cache."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def draw_digits(root: Path) -> Path:
    """Draw 60 digits in three class folders; the same ones each time."""
    for digit in range(3):
        folder = root / f"{digit}_digits"
        folder.mkdir(parents=True)
        for seed in range(20):
            draw_digit(digit, seed).save(folder / f"{seed}.png")
    return root


@pytest.fixture
def digits(tmp_path):
    """A folder of 60 drawn digits in three class folders."""
    return draw_digits(tmp_path / "digits")


@pytest.fixture
def shared():
    """The folder of real data that lies beside the repository on the developers' machines."""
    if not SHARED.is_dir():
        pytest.skip("the real data are not here")
    return SHARED


TINY = str(REPOSITORY / "tests" / "conf" / "tiny.yaml")


@pytest.fixture
def workplace(digits, tmp_path, monkeypatch):
    """An empty current folder but for ``digits/``, as a user has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    return tmp_path


def train_in(home: Path, *options: str) -> Path:
    """Train in a folder, as a user does; returns its ``runs``."""
    from lightning_modules.cli import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.delenv("PL_GLOBAL_SEED", raising=False)
        assert main(["fit", *options]) == 0
    return home / "runs"


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory):
    """The ``runs`` folder of a tiny training, which tests take copies of."""
    home = tmp_path_factory.mktemp("tiny")
    draw_digits(home / "digits")
    return train_in(home, "--config", TINY)


@pytest.fixture
def trained(workplace, tiny_runs, capsys):
    """The run folder of a tiny training."""
    shutil.copytree(tiny_runs, workplace / "runs")
    capsys.readouterr()
    return workplace / "runs" / "custom_cnn" / "version_0"


def start(*args: str, module: str = "lightning_modules", **options: object) -> "subprocess.Popen[str]":
    """Start a command as a user does: ``python -m lightning_modules ...``."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or else each start compiles all of torch again
    command = [sys.executable, "-m", module, *args]
    # A test run that was started in the background ignores Ctrl-C, and so would its children.
    options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


def wait_for(path: Path, process: "subprocess.Popen[str]", seconds: float = 120) -> None:
    """Wait until a process has written a file."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def draw_photo(kind: int, seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    """A colour picture: sky, grass or sand in big soft spots, a little different for each seed."""
    generator = np.random.default_rng([kind, seed, 7])
    base = np.array([(70, 130, 220), (60, 160, 50), (220, 190, 120)][kind])
    spots = base + generator.normal(0, 35, (4 + 3 * kind, 5, 3))
    return Image.fromarray(spots.clip(0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def draw_photos(root: Path) -> Path:
    """Draw 12 pictures in three class folders; the same ones each time."""
    for kind, name in enumerate(("sky", "grass", "sand")):
        (root / name).mkdir(parents=True)
        for seed in range(4):
            draw_photo(kind, seed).save(root / name / f"{seed}.jpg", quality=95)
    return root


@pytest.fixture
def photos(tmp_path):
    """A folder of 12 drawn pictures in three class folders."""
    return draw_photos(tmp_path / "photos")


@pytest.fixture(scope="session")
def resnet_weights(tmp_path_factory):
    """A file with the weights of a ResNet-18 that has learnt nothing."""
    import torch
    from torchvision.models import resnet18

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(resnet18().state_dict(), path)
    return path


@pytest.fixture(scope="session")
def milvus_process(tmp_path_factory):
    """A Milvus server that asks for a token, which is in the environment."""
    from tests.milvus_server import running_server

    with running_server(tmp_path_factory.mktemp("milvus")) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILVUS_TOKEN", server.token)
        yield server


@pytest.fixture
def milvus(milvus_process):
    """Its address."""
    milvus_process.keep_running()
    return milvus_process.uri
