"""Indexing with several processes, as ``torchrun`` starts them."""

import socket
import time

import numpy as np
import pytest

from retrieval.stores.location import INDEX_NAME
from retrieval.stores.sqlite import SQLiteStore
from tests.conftest import draw_photo, start
from tests.small_encoder import index_folder, index_together
from tests.test_index import content, many, processes, updated  # noqa: F401 - many is a fixture

pytestmark = pytest.mark.torchrun


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start_together(folder, size=2, **options):
    """Start the processes of a group, and give them with the queue of what they have done."""
    done, port = processes.Queue(), free_port()
    options = {"seconds": 0.0, "location": None, **options}
    members = [
        processes.Process(target=index_together, args=(folder, rank, size, port), kwargs={**options, "done": done})
        for rank in range(size)
    ]
    for member in members:
        member.start()
    return members, done


def test_a_group_does_what_one_process_does_each_image_once(many, tmp_path):  # noqa: F811
    (many / "class").mkdir()
    draw_photo(0, 0).save(many / "class" / "photo.jpg")
    (many / "broken.png").write_text("no picture")
    index_folder(many)
    records, vectors = content(many)
    for path in many.glob(".*"):
        path.unlink()
    members, done = start_together(many, size=3)
    updates = dict(done.get(timeout=60) for _ in members)
    for member in members:
        member.join()
        assert member.exitcode == 0
    assert (updates[0].encoded, updates[0].known, len(updates[0].errors)) == (101, 0, 1)
    assert updates[1].encoded > 20
    assert updates[2].encoded > 20
    again, matrix = content(many)
    assert again == records
    np.testing.assert_array_equal(matrix, vectors)
    assert updated(many) == (0, 0, 101, 0)


@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_of_a_group_is_killed_nothing_is_lost_and_the_next_update_goes_on(many, killed):  # noqa: F811
    members, _ = start_together(many, seconds=0.05)
    acknowledged = {}
    while len(acknowledged) < 16:
        assert all(member.is_alive() for member in members)
        if (many / INDEX_NAME).exists():
            with SQLiteStore(many / INDEX_NAME) as store:
                acknowledged = store.records()
        time.sleep(0.01)
    members[killed].kill()
    for member in members:
        member.join(timeout=60)
        assert member.exitcode not in (0, None)
    with SQLiteStore(many / INDEX_NAME) as store:
        left = store.records()
    assert acknowledged.items() <= left.items()
    assert len(left) < 100
    assert updated(many) == (100 - len(left), 0, len(left), 0)
    assert len(content(many)[0]) == 100


def test_torchrun_gives_the_vectors_of_one_process(photos, resnet_weights, tmp_path):
    options = ["--encoder", "resnet18", "--weights", str(resnet_weights), "--device", "cpu"]
    for seed in range(4, 30):
        draw_photo(seed % 3, seed).save(photos / "sky" / f"{seed}.jpg")
    locations = [tmp_path / "one.sqlite", tmp_path / "two.sqlite"]
    one = start("index", str(photos), *options, "--index", str(locations[0]), module="retrieval")
    out, err = one.communicate(timeout=200)
    assert one.returncode == 0, err
    command = ["--nproc-per-node", "2", "-m", "retrieval", "index", str(photos), *options, "--index"]
    together = start(*command, str(locations[1]), module="torch.distributed.run")
    out, err = together.communicate(timeout=200)
    assert together.returncode == 0, err
    assert out == f"{locations[1]}: 38 encoded, 0 known by content, 0 unchanged, 0 removed\n"
    with SQLiteStore(locations[0]) as first, SQLiteStore(locations[1]) as second:
        assert first.records() == second.records()
        np.testing.assert_array_equal(first.vectors()[1], second.vectors()[1])


def test_a_mistake_is_said_by_the_leader_alone(tmp_path):
    command = ["--nproc-per-node", "2", "-m", "retrieval", "index", str(tmp_path / "missing")]
    process = start(*command, module="torch.distributed.run")
    _, err = process.communicate(timeout=200)
    assert process.returncode != 0
    assert err.count(f"error: {tmp_path / 'missing'}: no such folder") == 1
    assert err.count("error: ") == 1 + err.count("error: failed")
