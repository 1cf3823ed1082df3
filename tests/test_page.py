"""The page, in a real browser, and its server, against whom it isn't meant for."""

import json
import os
import random
import shutil
import signal
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain
from pathlib import Path
from tempfile import gettempdir

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs digitdoodle[app]")
pytestmark = pytest.mark.browser

import httpx
from axe_playwright_python.sync_playwright import Axe
from gradio_client import Client, handle_file
from playwright.sync_api import Page, sync_playwright

from retrieval import cli
from retrieval.batching import BatchingEncoder
from retrieval.encoder import ResNetEncoder
from retrieval.index import ImageIndex
from retrieval.page import build_page, find_samples
from retrieval.recognition import Recogniser
from retrieval.server import MOST_BYTES, MOST_REQUESTS, read_users, serve
from tests.conftest import SHARED, draw_photo, start
from tests.strokes import STROKES

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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A network that has learnt MNIST a little, or the embedded digits where MNIST isn't here."""
    from lightning_modules.cli import main

    home = tmp_path_factory.mktemp("training")
    data = ["--data", "MNISTDataModule", "--data.root", str(SHARED / "data"), "--data.batch_size", "256"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.delenv("PL_GLOBAL_SEED", raising=False)
        epochs = "1" if SHARED.is_dir() else "10"
        trainer = ["--trainer.max_epochs", epochs, "--trainer.accelerator", "cpu"]
        assert main(["fit", *trainer, *(data if SHARED.is_dir() else [])]) == 0
    return home / "runs" / "custom_cnn" / "version_0" / "checkpoints" / "best.ckpt"


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
    page = build_page(shared, recogniser, find_samples(collection / "query_images"))
    yield serve(page, "127.0.0.1", free_port(), None).rstrip("/")
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


def wait_for_status(page: Page, text: str) -> None:
    page.wait_for_function(
        "text => document.querySelector('#status textarea, #status input').value.includes(text)", arg=text
    )


def captions(page: Page) -> list[str]:
    return [text.strip() for text in page.locator("#matches .caption-label").all_inner_texts()]


def test_an_uploaded_image_finds_its_like(page, collection, index):
    query = collection / "query_images" / "grass_30.jpg"
    upload(page, query)
    wait_for_status(page, "4 matches for grass_30.jpg")
    expected = [f"{m.distance:.3f} · {m.label}\n{m.path.relative_to(index.folder)}" for m in index.search(query)]
    assert captions(page) == expected
    shown = page.locator("#matches img")
    shown.nth(3).wait_for()
    assert all(shown.nth(number).evaluate("image => image.naturalWidth > 0") for number in range(4))


def test_a_sample_is_chosen_by_a_click(page):
    page.locator("#samples .thumbnail-lg").first.click()
    wait_for_status(page, "4 matches for grass_30.jpg")  # in natural order


def test_a_click_on_a_match_searches_with_it(page, collection):
    upload(page, collection / "query_images" / "sky_30.jpg")
    wait_for_status(page, "4 matches for sky_30.jpg")
    chosen = captions(page)[1].splitlines()[-1]
    page.locator("#matches .thumbnail-lg").nth(1).click()
    wait_for_status(page, f"4 matches for {Path(chosen).name}")
    assert chosen not in "".join(captions(page))  # byte-identical copies of the query are left out


def test_number_label_distance_and_explanation_are_settings(page, collection):
    upload(page, collection / "query_images" / "sky_30.jpg")
    wait_for_status(page, "4 matches")
    plain = page.locator("#matches img").first.get_attribute("src")
    page.get_by_label("Show which regions are similar").check()
    page.wait_for_function("before => document.querySelector('#matches img').getAttribute('src') !== before", arg=plain)
    page.locator("#k input[type=number]").fill("2")
    page.locator("#k input[type=number]").press("Tab")
    wait_for_status(page, "2 matches")
    page.get_by_label("Label", exact=True).click()
    page.get_by_role("option", name="sand").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('#matches .caption-label')].every(one => one.innerText.includes('sand'))"
    )
    page.locator("#threshold input[type=number]").fill("0")
    page.locator("#threshold input[type=number]").press("Tab")
    wait_for_status(page, "No match")


def test_several_queries_are_rows(page, collection):
    queries = sorted((collection / "query_images").iterdir())
    upload(page, *queries, into="several")
    wait_for_status(page, "3 queries, one a row")
    shown = captions(page)
    assert len(shown) == 3 * 5
    assert [shown[row * 5] for row in range(3)] == [f"Query\n{path.name}" for path in queries]


def test_a_broken_image_gets_a_sentence_and_the_page_goes_on(page, collection, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((collection / "query_images" / "sky_30.jpg").read_bytes()[:500])
    upload(page, broken)
    wait_for_status(page, "broken.jpg: ")
    assert "/" not in page.locator("#status textarea, #status input").input_value().partition(":")[0]
    page.get_by_label("Remove Image").click()
    upload(page, collection / "query_images" / "sky_30.jpg")
    wait_for_status(page, "4 matches for sky_30.jpg")


def draw(page: Page, digit: int) -> None:
    canvas = page.locator("#canvas canvas").first
    box = canvas.bounding_box()
    side = 0.8 * min(box["width"], box["height"])
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    for stroke in STROKES[digit]:
        points = [(left + across * side, top + down * side) for across, down in stroke]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point)
        page.mouse.up()


def clear(page: Page) -> None:
    """Clear the canvas, and wait until the server has sent new paper."""
    with page.expect_response(lambda response: "/file=" in response.url and "image" in response.url):
        page.get_by_label("Clear canvas").click()
    page.get_by_text("select the draw tool").wait_for(state="hidden")
    page.wait_for_timeout(1000)


def recognised(page: Page) -> str | None:
    """What the page says once it says the same for a while: it goes on recognising while one draws."""
    said = [None]
    for _ in range(60):
        page.wait_for_timeout(250)
        heading = page.locator("#probabilities [data-testid=label-output-value]")
        said.append(heading.inner_text().strip() if heading.count() else None)
        if len(said) > 6 and said[-1] is not None and len(set(said[-5:])) == 1:
            break
    return said[-1]


@pytest.mark.skipif(not SHARED.is_dir(), reason="MNIST is not here")
def test_drawn_digits_are_recognised(page):
    page.get_by_role("tab", name="Recognise").click()
    page.locator("#canvas canvas").first.wait_for()
    page.wait_for_timeout(1000)
    answers = []
    for digit in STROKES:
        draw(page, digit)
        answers.append(recognised(page))
        if digit == 2:
            page.locator("#seen img").first.wait_for()
            page.locator("#similar img").nth(3).wait_for()
            assert len(page.locator("#probabilities .confidence-set").all()) == 10
        clear(page)
    right = [answer == str(digit) for digit, answer in zip(STROKES, answers, strict=True)]
    assert sum(right) >= 9, answers


def test_a_picture_of_a_digit_is_recognised_and_a_broken_one_gets_a_sentence(page, recogniser, tmp_path):
    digit, broken = tmp_path / "seven.png", tmp_path / "broken.png"
    pixels = recogniser.train_set[0].images[0].numpy()
    Image.fromarray(255 - pixels[0]).resize((90, 90)).save(digit)  # dark on light, as on paper
    broken.write_bytes(digit.read_bytes()[:60])
    page.get_by_role("tab", name="Recognise").click()
    upload(page, broken, into="upload")
    page.wait_for_function("() => document.querySelector('#note textarea, #note input')?.value.includes('broken.png')")
    page.locator("#upload").get_by_label("Remove Image").click()
    upload(page, digit, into="upload")
    page.locator("#similar img").first.wait_for()
    assert recognised(page) == recogniser.recognise(Image.open(digit)).best


def test_a_phone_shows_all_of_it(browser, address, collection):
    phone = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = phone.new_page()
    page.goto(address)
    page.wait_for_selector("#query")
    upload(page, collection / "query_images" / "sky_30.jpg")
    wait_for_status(page, "4 matches")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    boxes = [page.locator("#matches img").nth(number).bounding_box() for number in range(4)]
    assert all(100 < box["width"] < 390 for box in boxes)
    page.get_by_role("tab", name="Recognise").tap()
    page.locator("#canvas canvas").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    phone.close()


def test_the_keyboard_is_enough(page, collection):
    """Tab reaches the sample, Enter searches with it; arrows change a slider; Enter searches with a match."""
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#samples .thumbnail-lg') !== null"):
            break
    page.keyboard.press("Enter")
    wait_for_status(page, "4 matches for grass_30.jpg")
    page.locator("#k input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    wait_for_status(page, "5 matches")
    first = captions(page)[0].splitlines()[-1]
    page.locator("#matches .thumbnail-lg").first.focus()
    page.keyboard.press("Enter")
    wait_for_status(page, f"matches for {Path(first).name}")


@pytest.mark.parametrize("tab", ["Search", "Recognise"])
def test_a_screen_reader_finds_labels(page, collection, tab):
    page.get_by_role("tab", name=tab).click()
    if tab == "Search":
        upload(page, collection / "query_images" / "sky_30.jpg")
        wait_for_status(page, "4 matches")
    violations = Axe().run(page).response["violations"]
    grave = [
        (found["id"], node["html"][:200])
        for found in violations
        if found["impact"] in ("serious", "critical")
        for node in found["nodes"]
        if not (found["id"] == "aria-prohibited-attr" and "empty" in node["html"])  # Gradio's, and harmless
    ]
    assert grave == []


def test_the_same_functions_are_an_api(address, collection, index, recogniser, tmp_path):
    client = Client(address, verbose=False)
    query = collection / "query_images" / "sky_30.jpg"
    found = client.predict(handle_file(str(query)), 3, "any label", 2, api_name="/search")
    expected = index.search(query, k=3)
    assert [one["file"] for one in found] == [str(match.path.relative_to(index.folder)) for match in expected]
    assert [one["distance"] for one in found] == pytest.approx([match.distance for match in expected], abs=1e-5)
    digit = tmp_path / "digit.png"
    Image.fromarray(recogniser.train_set[0].images[0, 0].numpy()).save(digit)
    said = client.predict(handle_file(str(digit)), api_name="/recognise")
    assert said["label"] == recogniser.recognise(Image.open(digit)).best
    assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert set(client.view_api(return_format="dict")["named_endpoints"]) == {"/search", "/recognise"}
    client.close()


def call(address: str, name: str, data: list) -> httpx.Response:
    """What the API answers: as ``curl`` would ask it."""
    asked = httpx.post(f"{address}/gradio_api/call/{name}", json={"data": data})
    if asked.status_code != 200:
        return asked
    return httpx.get(f"{address}/gradio_api/call/{name}/{asked.json()['event_id']}", timeout=60)


def store(address: str, path: Path) -> dict:
    """Upload a file; returns what stands for it in a request."""
    with path.open("rb") as file:
        (stored,) = httpx.post(f"{address}/gradio_api/upload", files={"files": file}, timeout=60).json()
    return {"path": stored, "meta": {"_type": "gradio.FileData"}}


def assert_serving(address: str, collection: Path) -> None:
    while httpx.post(f"{address}/gradio_api/reset", json={}).status_code == 429:
        time.sleep(1)  # a test has just asked too much
    query = store(address, collection / "query_images" / "sky_30.jpg")
    assert "sky" in call(address, "search", [query, 4, "any label", 2]).text


@pytest.mark.parametrize("path", ["secret.txt", "photos/sky/0.jpg", "photos/.digitdoodle.sqlite"])
@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}])
def test_no_path_of_a_client_is_opened(address, collection, path, meta):
    file = collection / path
    for name in (str(file), os.path.relpath(file), f"{uploads()}/../{file}", file.as_uri()):
        answer = call(address, "search", [{"path": name, **meta}, 4, "any label", 2])
        assert answer.status_code == 400 or "event: error" in answer.text
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
        answer = call(address, "search", [file, 4, "any label", 2])
        assert answer.status_code == 400 or "event: error" in answer.text
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
    assert bomb.stat().st_size < MOST_BYTES
    answer = call(address, "search", [store(address, bomb), 4, "any label", 2])
    assert "event: error" in answer.text
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


def test_more_requests_than_a_page_makes_are_held_off(collection, index):
    page = build_page(index, None)
    address = serve(page, "127.0.0.1", free_port(), None).rstrip("/")
    with httpx.Client(base_url=address) as client:
        answers = {client.post("/gradio_api/reset", json={}).status_code for _ in range(MOST_REQUESTS.amount + 1)}
    assert 429 in answers
    page.close()


def test_many_clients_at_once_get_what_one_gets(address, collection, index):
    paths = sorted((collection / "query_images").iterdir())
    expected = {path: [str(m.path.relative_to(index.folder)) for m in index.search(path)] for path in paths}
    answers, errors = [], []

    def ask(number: int) -> None:
        try:
            client = Client(address, verbose=False)
            for turn in range(5):
                path = paths[(number + turn) % len(paths)]
                found = client.predict(handle_file(str(path)), 4, "any label", 2, api_name="/search")
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
    assert "new.jpg" in call(address, "search", [query, 20, "sky", 2]).text


def test_users_are_asked_for(collection, index, tmp_path):
    users = tmp_path / "users.txt"
    users.write_text("ada:engine\n")
    page = build_page(index, None)
    address = serve(page, "127.0.0.1", free_port(), read_users(users)).rstrip("/")
    with httpx.Client(base_url=address) as client:
        assert client.post("/gradio_api/call/search", json={"data": []}).status_code == 401
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
        (["--checkpoint", "nowhere.ckpt"], "nowhere.ckpt: "),
        (["--port", "taken"], "the port is taken"),
    ],
)
def test_what_cannot_be_served_is_a_clear_error(args, message, collection, index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        args = [port if arg == "taken" else arg for arg in args]
        assert cli.main(["serve", str(collection / "photos"), *args]) == 1
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_the_command_serves_until_ctrl_c(collection, index):
    port = free_port()
    process = start("serve", str(collection / "photos"), "--port", str(port), module="retrieval")
    line = process.stdout.readline()
    assert f"http://127.0.0.1:{port}" in line
    assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
