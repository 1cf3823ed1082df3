"""What an index on Milvus has to withstand, beside what every index must."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid

import numpy as np
import pytest

from datamodules.errors import UserError
from retrieval.cli import main
from retrieval.index import ImageIndex
from retrieval.stores.base import Record
from retrieval.stores.location import parse_location
from tests.conftest import REPOSITORY, draw_photo, start
from tests.small_encoder import SmallEncoder, index_folder
from tests.test_index import content, many, processes  # noqa: F401 - many is a fixture
from tests.test_process_group import start_together
from tests.test_store import HEADER, VECTORS, fill, paths, record


@pytest.mark.slow
def test_milvus_is_imported_only_when_an_index_on_it_is_opened(tmp_path):
    code = f"""
import sys
from pathlib import Path
import retrieval, retrieval.cli, retrieval.index
from retrieval.stores.location import parse_location
parse_location(Path({str(tmp_path / "file.sqlite")!r})).open({{"encoder": "some"}}).close()
assert not [name for name in sys.modules if "milvus" in name]
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})


@pytest.mark.slow
def test_without_the_package_it_says_what_to_install():
    code = """
import sys
sys.modules["pymilvus"] = None
from retrieval.cli import main
sys.exit(main(["index", ".", "--index", "http://127.0.0.1:1/photos"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == 'error: an index on Milvus needs pymilvus: pip install ".[milvus]" in the clone\n'


@pytest.mark.milvus
@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:19530", "expected http://HOST:PORT/COLLECTION"),
        ("http:///photos", "expected http://HOST:PORT/COLLECTION"),
        ("http://127.0.0.1:1/my-photos", "letters, digits and _ in the collection's name"),
        ("http://127.0.0.1:1/a/b", "expected http://HOST:PORT/COLLECTION"),
        ("http://127.0.0.1:1/photos?exact=3", r"at most \?exact_up_to=IMAGES"),
        ("http://127.0.0.1:1/photos?exact_up_to=-3", "exact_up_to must be a number of images, got -3"),
        ("http://127.0.0.1:x/photos", "expected http://HOST:PORT/COLLECTION"),
    ],
)
def test_an_address_that_is_none_is_a_clear_error(address, message):
    with pytest.raises(UserError, match=message):
        parse_location(address).open()


@pytest.mark.milvus
def test_a_password_in_the_address_is_refused_and_not_repeated():
    with pytest.raises(UserError, match="keep the password out of the address") as caught:
        parse_location("https://me:secret@127.0.0.1:1/photos").open()
    assert "secret" not in str(caught.value)


@pytest.mark.milvus
@pytest.mark.parametrize("answers", [False, True], ids=["down", "silent"])
def test_a_server_that_does_not_answer_is_said_within_ten_seconds(photos, answers):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:
            server.listen()
        address = f"http://127.0.0.1:{server.getsockname()[1]}/photos"
        started = time.monotonic()
        with pytest.raises(UserError, match=f"^{address}: the server doesn't answer; is it running"):
            parse_location(address).open()
        assert time.monotonic() - started < 10
        process = start(
            "query", str(photos / "sky" / "0.jpg"), "--database", str(photos), "--index", address, module="retrieval"
        )
        out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (1, "")
    assert err == f"error: {address}: the server doesn't answer; is it running, and is this its address?\n"


@pytest.fixture
def address(milvus):
    """Address of an index of a test's own."""
    return f"{milvus}/images_{uuid.uuid4().hex}"


def make(address):
    return parse_location(address).open(HEADER, 8)


@pytest.mark.server
@pytest.mark.parametrize("token", ["", "root:wrong"])
def test_a_token_that_is_refused_is_a_clear_error(address, token, monkeypatch):
    monkeypatch.setenv("MILVUS_TOKEN", token)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"the server refuses (access without a|the) token in MILVUS_TOKEN$") as caught:
        make(address)
    assert time.monotonic() - started < 10
    assert "wrong" not in str(caught.value)


@pytest.mark.server
def test_a_collection_that_is_no_index_is_refused_and_left_alone(address):
    from pymilvus import MilvusClient

    uri, _, name = address.rpartition("/")
    client = MilvusClient(uri, token=os.environ["MILVUS_TOKEN"])
    client.create_collection(name, dimension=8)
    with pytest.raises(UserError, match="a collection, but not an index of images; name another with --index"):
        make(address)
    assert client.query(name, filter="", output_fields=["count(*)"])[0]["count(*)"] == 0
    client.drop_collection(name)


@pytest.mark.server
def test_an_index_of_a_newer_version_is_refused(address, monkeypatch):
    with monkeypatch.context() as patch:
        make(address).close()
        patch.setattr("retrieval.stores.base.SCHEMA", 0)
        with pytest.raises(UserError, match=r"newer version of digitdoodle \(index version 2, this one knows 0\)"):
            parse_location(address).open()


@pytest.mark.server
def test_beyond_a_size_it_is_searched_by_graphs_and_below_it_exactly(address):
    from retrieval.evaluation import recall

    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((1000, 8), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    digests = [number.to_bytes(16, "big") for number in range(1000)]
    with parse_location(f"{address}?exact_up_to=500").open(HEADER, 8) as store:
        store.add(
            [Record(f"{number:04}.png", 1, 1, digest, None, 1, 1) for number, digest in enumerate(digests)],
            dict(zip(digests, vectors, strict=True)),
        )
        for removed, kind in ((0, "HNSW"), (600, "FLAT")):
            store.remove([f"{number:04}.png" for number in range(removed)])
            store.compact()
            assert store._client.describe_index(store._collection, "vector")["index_type"] == kind
            assert recall(store, store.vectors()[1])["recall@4"] >= 0.99


@pytest.mark.server
@pytest.mark.parametrize(
    "call",
    [lambda store: store.search(VECTORS[:1], 3, [()]), lambda store: store.add([record(1, "new.png")], {})],
    ids=["search", "add"],
)
def test_a_server_that_stops_answering_is_said_within_ten_seconds_and_loses_nothing(address, milvus_process, call):
    with make(address) as store:
        fill(store)
        milvus_process.signal(signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(UserError, match="the server doesn't answer"):
                call(store)
            assert time.monotonic() - started < 10
        finally:
            milvus_process.signal(signal.SIGCONT)
        store.add([record(2, "then.png")], {})
        found = store.search(VECTORS[2:3], 2, [()])
        assert paths(found[0]) == ["a/2.png", "then.png"]


@pytest.mark.server
def test_a_server_that_is_killed_and_started_again_has_all_that_was_acknowledged(address, milvus_process):
    with make(address) as store:
        fill(store)
        store.remove(["a/3.png"])
    milvus_process.kill_and_start()
    with open_when_ready(address) as store:
        assert sorted(store.records()) == [f"a/{n}.png" for n in (0, 1, 2, 4, 5)]
        _, matrix = store.vectors()
        np.testing.assert_array_equal(matrix, VECTORS[[0, 1, 2, 4, 5]])
        assert paths(store.search(VECTORS[4:5], 1, [()])[0]) == ["a/4.png"]


def open_when_ready(address):
    """Open an index once its server has found its data again."""
    deadline = time.monotonic() + 300
    while True:
        try:
            return parse_location(address).open()
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.5)


@pytest.mark.server
def test_the_commands_give_on_milvus_what_they_give_on_a_file(address, photos, resnet_weights, tmp_path, capsys):
    def told(command, *args):
        assert main([command, *args, "--index", index]) == 0
        return capsys.readouterr().out.removeprefix(index)

    draw_photo(1, 9).save(photos / "sky" / "odd one ü%.jpg")
    answers = {}
    for index in (str(tmp_path / "file.sqlite"), address):
        written = ["--output", str(tmp_path / "audit.csv"), "--figure", str(tmp_path / "audit.png")]
        answers[index] = [
            told("index", str(photos), "--encoder", "resnet18", "--weights", str(resnet_weights)),
            told("query", str(photos / "sky" / "0.jpg"), "--database", str(photos), "--label", "sky", "--json"),
            told("evaluate", str(photos)),
            told("audit", str(photos), *written),
            told("evaluate", str(photos), "--recall"),
        ]
        if index == address:  # who asks may have other files: asking changes nothing there
            (photos / "sky" / "2.jpg").rename(tmp_path / "2.jpg")
            assert told("evaluate", str(photos)) == answers[index][2]
            (tmp_path / "2.jpg").rename(photos / "sky" / "2.jpg")
        (photos / "sky" / "1.jpg").rename(photos / "sky" / "moved.jpg")
        answers[index].append(told("index", str(photos)))
        (photos / "sky" / "moved.jpg").rename(photos / "sky" / "1.jpg")
    first, second = answers.values()
    assert first == second
    assert "0 encoded, 1 known by content, 12 unchanged, 1 removed" in second[-1]


@pytest.mark.server
def test_asking_an_index_that_is_not_there_is_a_clear_error(address, photos, capsys):
    assert main(["query", str(photos / "sky" / "0.jpg"), "--database", str(photos), "--index", address]) == 1
    assert capsys.readouterr().err == (
        f"error: {address}: no index there; create one with `python -m retrieval index`\n"
    )


@pytest.mark.server
def test_an_indexing_process_that_is_killed_is_completed_by_the_next(address, many):  # noqa: F811
    process = processes.Process(target=index_folder, args=(many, 0.5, 4, address))
    process.start()
    acknowledged = {}
    while len(acknowledged) < 20:
        assert process.is_alive()
        time.sleep(0.2)
        try:
            with parse_location(address).open() as store:
                acknowledged = store.records()
        except UserError:  # it is being made
            continue
    process.kill()
    process.join()
    with parse_location(address).open() as store:
        assert acknowledged.items() <= store.records().items()
        assert len(store.records()) < 100
    index_folder(many, location=address)
    with parse_location(address).open() as store:
        records, vectors = store.vectors()
    index_folder(many)
    expected, matrix = content(many)
    assert records == expected
    np.testing.assert_array_equal(vectors, matrix)


@pytest.mark.server
def test_each_process_of_a_group_writes_to_milvus_for_itself(address, many):  # noqa: F811
    members, done = start_together(many, location=address)
    updates = dict(done.get(timeout=100) for _ in members)
    for member in members:
        member.join()
        assert member.exitcode == 0
    assert updates[0].encoded == 100
    assert updates[1].encoded > 30
    with parse_location(address).open() as store:
        assert len(store.vectors()[0]) == 100


@pytest.mark.server
def test_the_page_searches_an_index_on_milvus_and_finds_what_is_added(address, photos, resnet_weights):
    pytest.importorskip("gradio")
    from tests.browser.conftest import free_port
    from tests.browser.test_server import call, store

    index = ["index", str(photos), "--index", address]
    assert main([*index, "--encoder", "resnet18", "--weights", str(resnet_weights)]) == 0
    port = free_port()
    process = start("serve", str(photos), "--index", address, "--port", str(port), module="retrieval")
    page = f"http://127.0.0.1:{port}"
    assert page in process.stdout.readline()
    draw_photo(0, 77).save(photos / "sky" / "new.jpg")
    assert main(index) == 0
    found = call(page, "search", [store(page, photos / "sky" / "0.jpg"), 20, "sky", 2, "", [], []]).json()["data"][0]
    assert sorted(match["file"] for match in found) == [f"sky/{name}.jpg" for name in ("1", "2", "3", "new")]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err


@pytest.mark.server
def test_duplicates_that_are_moved_on_the_page_leave_an_index_on_milvus(address, photos):
    pytest.importorskip("gradio")
    from retrieval.app.review import find_duplicates, put_away, put_back

    shutil.copy(photos / "sky" / "0.jpg", photos / "grass" / "copy.jpg")
    with ImageIndex.open(photos, SmallEncoder(), address) as index:
        index.update()
        review, _ = find_duplicates(index, "sky", "0")
        assert put_away(index, review.groups) == "1 images moved to .digitdoodle-trash/1."
        assert not (photos / "grass" / "copy.jpg").exists()
        before = index.store.records()
        assert len(before) == 12
        assert put_back(index) == "1 images moved back from .digitdoodle-trash/1."
        assert set(index.store.records()) == {*before, "grass/copy.jpg"}
