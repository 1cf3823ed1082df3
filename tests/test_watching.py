"""An index that follows its folder, by the real command line."""

import signal
import threading
import time
from pathlib import Path

import pytest

from retrieval.cli import main
from retrieval.index import ImageIndex
from retrieval.stores.location import find_location
from retrieval.watching import watch
from tests.conftest import draw_photo, start
from tests.small_encoder import SmallEncoder


@pytest.fixture
def watching(photos, resnet_weights, monkeypatch, capsys):
    """A process that watches ``photos/``; the index is there already."""
    monkeypatch.chdir(photos.parent)
    command = ["index", "photos", "--encoder", "resnet18", "--weights", str(resnet_weights), "--layer", "layer2"]
    assert main(command) == 0
    process = start("index", "photos", "--watch", module="retrieval")
    try:
        assert "12 unchanged" in process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_what_changes_in_a_folder_is_told_and_found(watching, capsys):
    draw_photo(1, 9).save(".new.jpg", quality=95)
    Path(".new.jpg").rename("photos/grass/new.jpg")
    assert " 1 encoded, 0 known by content, 12 unchanged, 0 removed" in watching.stdout.readline()
    Path("photos/sky/0.jpg").rename("photos/grass/moved.jpg")
    assert " 0 encoded, 1 known by content, 12 unchanged, 1 removed" in watching.stdout.readline()
    Path("photos/sky/1.jpg").unlink()
    assert " 0 encoded, 0 known by content, 12 unchanged, 1 removed" in watching.stdout.readline()
    Path("photos/sky/broken.jpg").write_bytes(b"none")
    assert " 0 encoded, 0 known by content, 12 unchanged, 0 removed" in watching.stdout.readline()
    assert "1 of 13 files can't be read, the others are indexed" in watching.stderr.readline()
    assert "broken.jpg" in watching.stderr.readline()
    capsys.readouterr()
    query = ["query", "photos/grass/new.jpg", "--database", "photos", "--include-self", "-k", "1", "--no-update"]
    assert main(query) == 0
    assert "0.0000    grass  photos/grass/new.jpg" in capsys.readouterr().out


def test_an_index_among_the_images_does_not_wake_itself(photos):
    updates, failures = [], []

    class Counting(ImageIndex):
        def update(self, **options):
            updates.append(options)
            return super().update(**options)

    stop = threading.Event()
    index = Counting(photos, SmallEncoder(), find_location(photos, photos / "my.sqlite"))
    watcher = threading.Thread(target=watch, args=(index, lambda update: None, failures.append, stop))
    watcher.start()
    time.sleep(4)
    assert len(updates) == 1
    draw_photo(0, 9).save(photos / "new.png")
    time.sleep(4)
    stop.set()
    watcher.join()
    assert (len(updates), failures) == (2, [])


def test_a_folder_that_has_lost_its_images_is_said_and_watched_on(photos, tmp_path):
    told, failures, stop = [], [], threading.Event()
    with ImageIndex.open(photos, SmallEncoder(), tmp_path / "index.sqlite") as index:
        index.update()
        watcher = threading.Thread(target=watch, args=(index, told.append, failures.append, stop))
        watcher.start()
        time.sleep(1)
        for folder in list(photos.iterdir()):
            folder.rename(tmp_path / folder.name)
        wait_until(lambda: failures)
        assert "no images in this folder, 12 in its index" in str(failures[0])
        draw_photo(0, 9).save(photos / "new.png")
        for name in ("sky", "grass", "sand"):
            (tmp_path / name).rename(photos / name)
        wait_until(lambda: told)
        stop.set()
        watcher.join()
        assert len(index.search(draw_photo(0, 0), k=50)) == 13
        assert sum(update.removed for update in told) == sum(update.known for update in told)


def wait_until(holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_ctrl_c_ends_it(watching):
    time.sleep(1)
    watching.send_signal(signal.SIGINT)
    _, err = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert "Traceback" not in err
