"""The page: many clients at once, memory over many queries, and how soon there is something to see."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.data import photo_folder
from benchmarks.harness import REPOSITORY, Measurement, Options, has, in_turn, say
from benchmarks.searching import untrained_weights
from retrieval.cli import main

CLIENTS = 8
QUERIES = 50  # of each client
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def run(options: Options) -> list[Measurement]:
    """Queries by HTTP, as ``curl`` makes them, against the encoder's own rate on batches."""
    if not has("gradio", "browser"):
        return []
    import torch

    torch.set_num_threads(options.threads)
    name = "resnet18" if options.smoke else "resnet50"
    clients, each = (2, 2) if options.smoke else (CLIENTS, QUERIES)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        folder = photo_folder(options, scratch, 8 if options.smoke else 64)
        encoder = ["--encoder", name, "--weights", untrained_weights(name, scratch)]
        with contextlib.redirect_stdout(sys.stderr):
            main(["index", str(folder), *encoder])
        images = sorted(folder.glob("*.jpg"))
        with _served(folder, scratch, options.threads) as (address, process):
            latencies: list[float] = []

            def ours() -> float:
                start = time.perf_counter()
                latencies.extend(_ask(address, images, clients, each))
                return clients * each / (time.perf_counter() - start)

            warm = clients * each // 2
            _ask(address, images, clients, each // 2)
            before = _resident_mb(process.pid)
            rate = Measurement(f"{clients} clients × {each} queries at once, {name}", "queries/s")
            in_turn(
                rate, {"ours": ours, "the network on batches": lambda: _bare(folder, name, scratch)}, options.repeats
            )
            done = warm + clients * each * options.repeats
            while not options.smoke and done < 2000:
                ours()
                done += clients * each
            after = _resident_mb(process.pid)
            say(f"resident memory after {warm} and after {done} queries: {before:.0f}, {after:.0f} MB")
            percentiles = quantiles(latencies, n=100)
            return [
                rate,
                Measurement("median latency of a query", "s", {"ours": [median(latencies)]}),
                Measurement("99th percentile of the latency", "s", {"ours": [percentiles[98]]}),
                Measurement(f"memory after {done} queries, of that after {warm}", "", {"ours": [after / before]}),
                *_paint(address, options),
            ]


@contextlib.contextmanager
def _served(folder: Path, scratch: Path, threads: int) -> Any:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": f"{threads}"}
    environment["GRADIO_TEMP_DIR"] = str(scratch / "gradio")
    command = [sys.executable, "-m", "retrieval", "serve", str(folder), "--port", f"{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=scratch)
    assert process.stdout is not None
    try:
        if not process.stdout.readline():
            raise RuntimeError("the page was not served")
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.terminate()
        process.wait()


def _ask(address: str, images: list[Path], clients: int, each: int) -> list[float]:
    """Queries of clients at once; returns the seconds of each."""
    import httpx

    seconds: list[float] = []

    def client(number: int) -> None:
        with httpx.Client(base_url=f"{address}/gradio_api", timeout=120) as session:
            for turn in range(each):
                image = images[(number * each + turn) % len(images)]
                start = time.perf_counter()
                (path,) = session.post("/upload", files={"files": image.read_bytes()}).raise_for_status().json()
                file = {"path": path, "meta": {"_type": "gradio.FileData"}}
                session.post("/run/search", json={"data": [file, 4, "any label", 2, "", [], []]}).raise_for_status()
                seconds.append(time.perf_counter() - start)

    failed: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            client(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=[number]) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return seconds


_ENCODERS: dict[str, tuple[Any, list[Any]]] = {}


def _bare(folder: Path, name: str, scratch: Path) -> float:
    from datamodules.images import find_images, read_image
    from retrieval import ResNetEncoder

    if name not in _ENCODERS:
        encoder = ResNetEncoder(name, untrained_weights(name, scratch))
        _ENCODERS[name] = encoder, [encoder.prepare(read_image(path, 3)) for path in find_images(folder)]
        encoder.encode(_ENCODERS[name][1][: encoder.batch_size])
    encoder, prepared = _ENCODERS[name]
    start = time.perf_counter()
    for first in range(0, len(prepared), encoder.batch_size):
        encoder.encode(prepared[first : first + encoder.batch_size])
    return len(prepared) / (time.perf_counter() - start)


def _resident_mb(pid: int) -> float:
    import psutil

    return float(psutil.Process(pid).memory_info().rss) / 2**20


def _paint(address: str, options: Options) -> list[Measurement]:
    """Seconds from asking for the page to the first paint, as the browser has it."""
    found = next((path for path in map(shutil.which, CHROMIUM) if path), None)
    if found is None or not has("playwright", "browser"):
        return []
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])

        def ours() -> float:
            page = browser.new_page()
            page.goto(address)
            page.wait_for_selector("#query")
            script = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
            milliseconds = float(page.evaluate(script))
            page.close()
            return milliseconds / 1000

        return [in_turn(Measurement("first paint of the page", "s"), {"ours": ours}, options.repeats)]
