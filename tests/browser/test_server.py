"""The server and its API, also against whom they aren't meant for."""

import asyncio
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain
from pathlib import Path
from tempfile import gettempdir

import httpx
import pytest
from gradio_client import Client, handle_file
from limits import RateLimitItemPerMinute
from PIL import Image
from starlette.responses import PlainTextResponse

from datamodules.errors import UserError
from datamodules.images import read_image
from lightning_modules.checkpoint import load_network
from lightning_modules.commands.read import read_pictures
from lightning_modules.embedded import READER
from lightning_modules.networks import LineReader
from lightning_modules.number_reading import read_picture
from retrieval import cli
from retrieval.app.page import build_page
from retrieval.app.question import Question
from retrieval.app.search_tab import find_samples, known_labels
from retrieval.app.server import MAX_BYTES, Guard, read_users, serve
from retrieval.index import ImageIndex
from retrieval.query import Example
from retrieval.stores.location import INDEX_NAME
from retrieval.stores.sqlite import SQLiteStore
from tests.browser.conftest import free_port
from tests.conftest import REPOSITORY, draw_digit, draw_photo, draw_photos, start
from tests.small_encoder import SmallEncoder
from tests.test_lines import sheet

pytestmark = pytest.mark.browser


def test_the_same_functions_are_an_api(address, collection, index, recogniser, tmp_path):
    client = Client(address, verbose=False)
    query = collection / "query_images" / "sky_30.jpg"
    found = client.predict(handle_file(str(query)), 3, api_name="/search")
    expected = index.search(query, k=3)
    assert [one["file"] for one in found] == [str(match.path.relative_to(index.folder)) for match in expected]
    assert [one["distance"] for one in found] == pytest.approx([match.distance for match in expected], abs=1e-5)
    part = client.predict(image=handle_file(str(query)), k=1, region="0,0,40,30", api_name="/search")
    (match,) = index.search(Example(query, (0, 0, 40, 30)), k=1)
    assert part == [
        {"file": str(match.path.relative_to(index.folder)), "distance": match.distance, "label": match.label}
    ]
    digit = tmp_path / "digit.png"
    Image.fromarray(recogniser.train_set[0].images[0, 0].numpy()).save(digit)
    said = client.predict(handle_file(str(digit)), api_name="/recognise")
    assert said["label"] == recogniser.recognise(Image.open(digit)).best
    sheet([["204", "17"]]).save(tmp_path / "sheet.png")
    read = client.predict(handle_file(str(tmp_path / "sheet.png")), api_name="/read")
    picture = read_image(tmp_path / "sheet.png", channels=3)
    assert read == [number.to_dict() for number in read_picture(load_network(READER, LineReader), picture)]
    assert len(read) == 2
    large = tmp_path / "large.jpg"  # which is decoded at the half of its size
    sheet([["204", "17"]]).resize((4200, 3000)).save(large)
    (file,) = read_pictures(load_network(READER, LineReader), [large])
    expected = [{name: value for name, value in row.items() if name != "path"} for row in file.rows()]
    assert client.predict(handle_file(str(large)), api_name="/read") == expected
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/search", "/recognise", "/read"}
    client.close()


def test_an_image_is_searched_with_like_some_and_unlike_others(address, collection, index):
    sky, grass, sand = (collection / "query_images" / f"{name}_30.jpg" for name in ("sky", "grass", "sand"))
    client = Client(address, verbose=False)
    found = client.predict(
        image=handle_file(str(sky)),
        k=3,
        max_distance=1.2,
        region="0,0,90,90",
        like=[handle_file(str(grass))],
        unlike=[handle_file(str(sand))],
        api_name="/search",
    )
    client.close()
    query = [Example(sky, (0, 0, 90, 90)), Example(grass), Example(sand, weight=-1)]
    matches = index.search(query, k=3, max_distance=1.2)
    assert [one["file"] for one in found] == [str(match.path.relative_to(index.folder)) for match in matches]
    assert [one["distance"] for one in found] == pytest.approx([match.distance for match in matches], abs=1e-5)


def test_the_examples_of_the_guide_work(address, index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_photo(0, 30, (300, 220)).save("photo.jpg")
    draw_photo(1, 30).save("other.jpg")
    draw_digit(2, 0).save("digit.png")
    sheet([["204", "17"]]).save("cheque.jpg")
    guide = (REPOSITORY / "docs" / "page.md").read_text().replace("http://127.0.0.1:7860", address)
    (python,) = re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S)
    exec(python)
    (shell,) = re.findall(r"^```sh\n(.*?)^```", guide, re.M | re.S)
    (found,) = json.loads(subprocess.check_output(["bash", "-ec", shell]))["data"]
    matches = index.search(
        [Example("photo.jpg", (40, 30, 200, 180)), Example("other.jpg", weight=-1)], max_distance=1.4
    )
    assert [one["file"] for one in found] == [str(match.path.relative_to(index.folder)) for match in matches]
    assert found


def call(address: str, name: str, data: list) -> httpx.Response:
    """What the API answers: as ``curl`` would ask it."""
    return httpx.post(f"{address}/gradio_api/run/{name}", json={"data": data}, timeout=60)


def store(address: str, path: Path) -> dict:
    """Upload a file; returns what stands for it in a request."""
    with path.open("rb") as file:
        (stored,) = httpx.post(f"{address}/gradio_api/upload", files={"files": file}, timeout=60).json()
    return {"path": stored, "meta": {"_type": "gradio.FileData"}}


def assert_serving(address: str, collection: Path) -> None:
    query = store(address, collection / "query_images" / "sky_30.jpg")
    assert "sky" in call(address, "search", [query, 4, "any label", 2, "", [], []]).text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ([0, "any label", 2, "", [], []], "must lie in 1 to 20"),
        ([21, "any label", 2, "", [], []], "must lie in 1 to 20"),
        (["four", "any label", 2, "", [], []], "must lie in 1 to 20"),
        ([4, "any label", "far", "", [], []], "must be a number, auto, or empty"),
        ([4, None, "auto", None, None, None], "fewer than 20 different images: too few to tell a match from chance"),
        ([4, None, None, 5, [], []], "expected four pixel coordinates LEFT,TOP,RIGHT,BOTTOM, got 5"),
        ([4, None, None, "", "sky.jpg", []], "several images are a list"),
        ([4, None, None, "", [], ["sky.jpg"]], "an image is required"),
        ([4, None, None, "", [], [{"path": __file__}]], "not an uploaded image"),
        ([4, None, None, "", [], [{}] * 16], "no more than 16 images together"),
        ([4, "any label", 2, "0,0,40", [], []], "expected four pixel coordinates LEFT,TOP,RIGHT,BOTTOM, got 0,0,40"),
        ([4, "any label", 2, "0,0,4000,30", [], []], "sky_30.jpg: the region 0,0,4000,30"),
        ([4, "no such label", 2, "", [], []], "no image has the label no such label"),
    ],
)
def test_settings_that_make_no_sense_get_a_sentence(address, collection, settings, said):
    query = store(address, collection / "query_images" / "sky_30.jpg")
    assert said in call(address, "search", [query, *settings]).text


def test_samples_that_cannot_be_read_are_left_out(collection, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    shutil.copy(collection / "query_images" / "sky_30.jpg", tmp_path)
    assert find_samples(tmp_path) == [tmp_path / "sky_30.jpg"]
    assert find_samples(tmp_path / "nowhere") == []


@pytest.mark.parametrize("path", ["secret.txt", "photos/sky/0.jpg", "photos/.digitdoodle.sqlite"])
@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_no_path_of_a_client_is_opened(address, collection, path, meta):
    file = collection / path
    for name in (str(file), os.path.relpath(file), f"{uploads()}/../{file}", file.as_uri()):
        answer = call(address, "search", [{"path": name, **meta}, 4, "any label", 2, "", [], []])
        assert answer.status_code >= 400
        assert "nobody" not in answer.text
        for route in ("file=", "file/", "proxy="):
            got = httpx.get(f"{address}/gradio_api/{route}{name}")
            assert got.status_code in (400, 403, 404, 421), (route, name)
    assert_serving(address, collection)


def uploads() -> str:
    """The folder that uploads are stored in: a path below it must not lead out of it."""
    return str(Path(gettempdir()) / "gradio")


def test_addresses_are_not_fetched(address, collection):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    elsewhere = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{elsewhere.server_port}/image.png"
    for file in ({"path": url, "meta": {"_type": "gradio.FileData"}}, {"path": url}, {"url": url}):
        answer = call(address, "search", [file, 4, "any label", 2, "", [], []])
        assert answer.status_code >= 400
    disguised = [("Content-Type", "application/json"), ("Content-Type", "multipart/form-data")]
    content = json.dumps({"data": [{"path": url, "meta": {"_type": "gradio.FileData"}}, 4, "any label", 2, "", [], []]})
    answer = httpx.post(f"{address}/gradio_api/run/search", content=content, headers=disguised)
    assert (answer.status_code, answer.text) == (400, "not a request of this page")
    for route in ("file=", "proxy="):
        assert httpx.get(f"{address}/gradio_api/{route}{url}").status_code == 403
    elsewhere.shutdown()
    assert asked == []
    assert_serving(address, collection)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "elsewhere.example"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "[::1"}, 421),
    ],
)
def test_requests_of_other_sites_are_refused(address, headers, status):
    for ask in (httpx.get, httpx.post):
        assert ask(f"{address}/gradio_api/info", headers=headers).status_code == status


def test_what_is_too_large_is_refused(address, collection):
    large = b"x" * (100 << 20)

    def in_pieces():
        for _ in range(100):
            yield large[: 1 << 20]

    url = f"{address}/gradio_api/upload"
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    multipart = {"Content-Type": "multipart/form-data; boundary=x"}
    for content, headers in (
        (large, multipart),  # says how long it is
        (chain([part], in_pieces()), multipart),  # doesn't
        (in_pieces(), {"Content-Type": "application/json"}),
    ):
        with suppress(httpx.TransportError):  # the server may hang up
            assert httpx.post(url, content=content, headers=headers, timeout=60).status_code in (400, 411, 413)
    assert_serving(address, collection)


def test_a_decompression_bomb_gets_a_sentence(address, collection, tmp_path):
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    assert bomb.stat().st_size < MAX_BYTES
    answer = call(address, "search", [store(address, bomb), 4, "any label", 2, "", [], []])
    assert answer.status_code >= 400
    assert "bomb.png: " in answer.text
    assert gettempdir() not in answer.text
    assert_serving(address, collection)


def test_a_thousand_malformed_requests_leave_it_serving(address, collection):
    generator = random.Random(7)
    odd = [
        None,
        -1,
        1e300,
        "x" * 5000,
        [],
        [[]],
        {},
        {"path": None},
        {"path": 5},
        "../../etc/passwd",
        True,
        "\x00",
        [1] * 99,
    ]
    paths = [
        "upload",
        "queue/join",
        "queue/data",
        "call/search",
        "call/recognise",
        "run/search",
        "api/search",
        "reset",
        "component_server",
        "heartbeat/x",
        "stream/x",
        "file=x",
        "cancel",
        "info",
        "call/search/x",
        "login",
    ]
    headers = [{}, {"Content-Type": "multipart/form-data"}, {"Content-Type": "application/json"}]
    with httpx.Client(base_url=address, timeout=30) as client:
        for _ in range(1000):
            kind = generator.randrange(4)
            if kind == 0:
                content = generator.randbytes(generator.randrange(300))
            elif kind == 1:
                content = b"[" * generator.randrange(1, 100_000)
            else:
                data = [generator.choice(odd) for _ in range(generator.randrange(6))]
                body = {"data": data, "fn_index": generator.choice([*odd, 0, 3]), "session_hash": generator.choice(odd)}
                content = json.dumps(generator.choice([body, data, generator.choice(odd)])).encode()
            path = generator.choice(["/gradio_api/", "/"]) + generator.choice(paths)
            try:
                with client.stream("POST", path, content=content, headers=generator.choice(headers)) as answer:
                    assert answer.status_code < 600
                    text = (
                        next(answer.iter_text(), "")
                        if "event-stream" not in answer.headers.get("content-type", "")
                        else ""
                    )
            except httpx.TransportError:
                continue
            assert "Traceback" not in text
            assert "nobody" not in text
    assert_serving(address, collection)


def test_more_requests_than_a_page_makes_are_held_off():
    guard = Guard(PlainTextResponse("served"), [], RateLimitItemPerMinute(5))

    async def ask() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://page") as client:
            return [(await client.post("/", json={})).status_code for _ in range(7)]

    assert asyncio.run(ask()) == [200] * 5 + [429] * 2


def test_passwords_can_not_be_tried_out():
    guard = Guard(PlainTextResponse("served"), [], RateLimitItemPerMinute(1000))

    async def ask() -> list[int]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guard), base_url="http://page") as client:
            tried = [await client.post("/login", data={"username": "ada", "password": str(n)}) for n in range(12)]
            return [answer.status_code for answer in (*tried, await client.post("/", json={}))]

    assert asyncio.run(ask()) == [200] * 10 + [429] * 2 + [200]


def test_many_clients_at_once_get_what_one_gets(address, collection, index):
    paths = sorted((collection / "query_images").iterdir())
    expected = {path: [str(m.path.relative_to(index.folder)) for m in index.search(path)] for path in paths}
    answers, errors = [], []

    def ask(number: int) -> None:
        try:
            client = Client(address, verbose=False)
            for turn in range(5):
                path = paths[(number + turn) % len(paths)]
                found = client.predict(handle_file(str(path)), api_name="/search")
                answers.append([one["file"] for one in found] == expected[path])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert answers == [True] * 40


def test_an_update_by_another_process_is_found(address, collection, resnet_weights):
    new = collection / "photos" / "sky" / "new.jpg"
    draw_photo(0, 77).save(new, quality=95)
    options = ["--encoder", "resnet18", "--weights", str(resnet_weights)]
    process = start("index", str(collection / "photos"), *options, module="retrieval")
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    query = store(address, collection / "query_images" / "sky_30.jpg")
    assert "new.jpg" in call(address, "search", [query, 20, "sky", 2, "", [], []]).text


def test_users_are_asked_for(collection, index, tmp_path):
    users = tmp_path / "users.txt"
    users.write_text("ada:engine\n")
    page = build_page(index, None)
    address = serve(page, "127.0.0.1", free_port(), read_users(users)).rstrip("/")
    with httpx.Client(base_url=address) as client:
        assert client.post("/gradio_api/run/search", json={"data": []}).status_code == 401
        assert client.post("/login", data={"username": "ada", "password": "wrong"}).status_code == 400
        assert client.post("/login", data={"username": "ada", "password": "engine"}).status_code == 200
        assert client.get("/config").json()["title"] == "DigitDoodle"
    page.close()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached by others: say who may use the page with --auth FILE"),
        (["--host", "0.0.0.0", "--auth", "nowhere.txt"], "nowhere.txt: no such file or directory"),
        (["--auth", "empty.txt"], "empty.txt: expected a line USER:PASSWORD for each user"),
        (["--checkpoint", "nowhere.ckpt"], "nowhere.ckpt: no such file or folder"),
        (["--reader", "nowhere.ckpt"], "nowhere.ckpt: no such file or folder"),
        (["--port", "taken"], "the port is in use"),
        (["--host", "no such host", "--no-auth"], "the host is not this machine's"),
    ],
)
def test_what_cannot_be_served_is_told_before_the_folder_is_indexed(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    photos = draw_photos(tmp_path / "photos")
    (tmp_path / "empty.txt").write_text("\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        args = [port if arg == "taken" else arg for arg in args]
        assert cli.main(["serve", str(photos), "--encoder", "digits", *args]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not list(photos.glob(".*"))


def test_an_address_of_ipv6_is_served(index):
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        pytest.skip("no IPv6 here")
    page = build_page(index, None)
    address = serve(page, "::1", free_port(), None)
    assert address.startswith("http://[::1]:")
    assert httpx.get(f"{address}config").json()["title"] == "DigitDoodle"
    page.close()


@pytest.mark.parametrize("answers", [True, False])
def test_a_proxy_between_the_machine_and_itself_is_named(index, monkeypatch, answers):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(502)

    proxy = HTTPServer(("127.0.0.1", 0), Handler)
    if answers:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
    else:
        proxy.server_close()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    page = build_page(index, None)
    with pytest.raises(UserError, match=r"by way of the proxy .*: set the variable no_proxy=127\.0\.0\.1$"):
        serve(page, "127.0.0.1", free_port(), None)
    page.close()
    if answers:
        proxy.shutdown()


def test_the_labels_are_listed_again_once_the_index_has_changed(photos, monkeypatch):
    listed = []
    labels = SQLiteStore.labels
    monkeypatch.setattr(SQLiteStore, "labels", lambda store: listed.append(store) or labels(store))
    with ImageIndex.open(photos, SmallEncoder()) as index:
        index.update()
        known = known_labels(index)
        for _ in range(3):
            assert known() == ["grass", "sand", "sky"]
        assert len(listed) == 1
        (photos / "sky").rename(photos / "air")
        index.update()
        assert known() == ["air", "grass", "sand"]
        (photos / INDEX_NAME).rename(photos / "aside")
        assert known() == []
        (photos / "aside").rename(photos / INDEX_NAME)
        assert known() == ["air", "grass", "sand"]


@pytest.mark.parametrize("place", [-1, 2, 99, "0", None, [0, 0]])
def test_an_image_that_is_no_longer_kept_can_not_be_removed(place):
    question = Question(kept=(Example("a.jpg"), Example("b.jpg")))
    assert question.remove(0).kept == (Example("b.jpg"),)
    with pytest.raises(UserError, match=r"^That image is no longer shown: search again\.$"):
        question.remove(place)


def test_users_of_a_file_as_windows_writes_it(tmp_path):
    (tmp_path / "users.txt").write_bytes("ada:engine\r\nbob:bridge\r\n".encode("utf-8-sig"))
    assert read_users(tmp_path / "users.txt") == [("ada", "engine"), ("bob", "bridge")]


@pytest.mark.parametrize("own", [True, False])
def test_uploads_are_private_and_go_with_the_server_also_by_sigterm(photos, tmp_path, monkeypatch, own):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    if own:
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "own"))
    else:
        monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    port = free_port()
    process = start("serve", str(photos), "--encoder", "digits", "--port", str(port), module="retrieval")
    assert f"http://127.0.0.1:{port}" in process.stdout.readline()
    place = Path(store(f"http://127.0.0.1:{port}", photos / "sky" / "0.jpg")["path"])
    if own:
        assert place.is_relative_to(tmp_path / "own")
    else:
        (folder,) = (tmp_path / "tmp").glob("digitdoodle-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert place.is_relative_to(folder)
    assert not (tmp_path / "tmp" / "gradio").exists()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) == (0, False)
    assert not place.exists()
    assert not list((tmp_path / "tmp").glob("digitdoodle-*"))


def test_the_command_serves_until_ctrl_c(collection, index):
    port = free_port()
    process = start("serve", str(collection / "photos"), "--review", "--port", str(port), module="retrieval")
    line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in line
    assert '"label":"Review"' in httpx.get(f"http://127.0.0.1:{port}/config").text
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
