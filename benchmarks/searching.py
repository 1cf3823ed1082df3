"""Retrieval: queries, indexing, and exact search."""

import contextlib
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data import photo_folder
from benchmarks.harness import Measurement, Options, has, in_turn, run_process, seconds_of
from retrieval.cli import main

SIZES = (10_000, 200_000, 1_000_000)


def run(options: Options) -> list[Measurement]:
    """A query over 43 photographs, indexing, and search latency."""
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        return [*_queries(options, scratch), *_indexing(options, scratch), *_latency(options)]


def untrained_weights(name: str, scratch: Path) -> str:
    """Weights that have learnt nothing: only time counts."""
    import torch
    from torchvision.models import get_model

    path = scratch / f"{name}.pth"
    if not path.exists():
        torch.manual_seed(0)
        torch.save(get_model(name).state_dict(), path)
    return str(path)


def _queries(options: Options, scratch: Path) -> list[Measurement]:
    """The reference's query computes all features again; ours one image's."""
    name = "resnet18" if options.smoke else "resnet50"
    folder = photo_folder(options, scratch, 4 if options.smoke else 43)
    query = str(sorted(folder.glob("*.jpg"))[0])
    encoder = ["--encoder", name, "--weights", untrained_weights(name, scratch)]
    with contextlib.redirect_stdout(sys.stderr):
        main(["index", str(folder), *encoder])

    def ours_warm() -> float:
        command = ["-m", "benchmarks.peers.warm_query", str(folder), query]
        return float(run_process(command, options.threads).rows[0]["seconds"])

    def ours_cold() -> float:
        return run_process(["-m", "retrieval", "query", query, "--database", str(folder)], options.threads).seconds

    warm = Measurement(f"a warm query over {4 if options.smoke else 43} photographs, {name}", "s")
    cold = Measurement(f"a cold query over {4 if options.smoke else 43} photographs, {name}", "s")
    reference: dict[str, Any] = {"ours": ours_warm}
    if not options.smoke and has("keras"):
        command = ["-m", "benchmarks.peers.keras_query", str(folder), query]
        reference["Keras, all features again"] = lambda: run_process(command, options.threads).rows[0]["seconds"]
    in_turn(warm, reference, options.repeats)
    if options.smoke:
        return [warm]
    whole: dict[str, Any] = {"ours": ours_cold}
    if "Keras, all features again" in reference:
        whole["Keras, all features again"] = lambda: run_process(command, options.threads).seconds
    in_turn(cold, whole, options.repeats)
    return [warm, cold]


def _indexing(options: Options, scratch: Path) -> list[Measurement]:
    """Files to vectors in the index, against the network alone, the processor's arithmetic and img2vec."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from datamodules.images import find_images, read_image
    from lightning_modules.hardware import cpu_has_bf16
    from retrieval import ImageIndex, ResNetEncoder

    torch.set_num_threads(options.threads)
    results = []
    for name, count in (("resnet18", 8),) if options.smoke else (("resnet18", 320), ("resnet50", 128)):
        place = scratch / name
        place.mkdir()
        folder = photo_folder(options, place, count)
        encoder = ResNetEncoder(name, untrained_weights(name, scratch))
        paths = find_images(folder)
        prepared = [encoder.prepare(read_image(path, 3)) for path in paths]
        encoder.encode(prepared[: encoder.batch_size])
        with FlopCounterMode(display=False) as counter:
            encoder.maps(torch.from_numpy(prepared[0][None]).to(encoder.device))

        def bare(encoder: ResNetEncoder = encoder, prepared: list[Any] = prepared) -> float:
            start = time.perf_counter()
            for first in range(0, len(prepared), encoder.batch_size):
                encoder.encode(prepared[first : first + encoder.batch_size])
            return len(prepared) / (time.perf_counter() - start)

        def arithmetic(encoder: ResNetEncoder = encoder, operations: int = counter.get_total_flops()) -> float:
            square = torch.rand((256 if options.smoke else 2048,) * 2, device=encoder.device)
            return 2 * len(square) ** 3 / seconds_of(lambda: (square @ square)[0, 0].item()) / operations

        def ours(encoder: ResNetEncoder = encoder, folder: Path = folder) -> float:
            for path in folder.glob(".*"):
                path.unlink()
            start = time.perf_counter()
            with ImageIndex.open(folder, encoder) as index:
                encoded = index.update().encoded
            return encoded / (time.perf_counter() - start)

        peers: dict[str, Any] = {}
        if not options.smoke and has("img2vec_pytorch"):
            peers["img2vec"] = lambda paths=paths, name=name: _img2vec(paths, name)
        contestants: dict[str, Any] = {
            "ours": ours,
            "the network alone": bare,
            "its operations at the rate of a matrix product": arithmetic,
            **peers,
        }
        in_turn(measurement := Measurement(f"indexing photographs, {name}", "images/s"), contestants, options.repeats)
        results.append(measurement)
        if cpu_has_bf16() and not options.smoke:
            reduced = ResNetEncoder(name, untrained_weights(name, scratch), precision="bf16")
            contestants = {"ours": partial(ours, reduced), "in full precision": ours, **peers}
            measurement = Measurement(f"indexing photographs, {name}, --precision bf16", "images/s")
            in_turn(measurement, contestants, options.repeats)
            results.append(measurement)
    return results


def _img2vec(paths: list[Path], name: str) -> float:
    """As its page shows it: an image at a time."""
    from unittest.mock import patch

    import torch
    from img2vec_pytorch import Img2Vec, img_to_vec
    from PIL import Image
    from torchvision.models import get_model

    network = get_model(name)  # its own would be downloaded
    with patch.object(img_to_vec, name, lambda **_: network):
        encoder = Img2Vec(cuda=torch.cuda.is_available(), model=name)
    encoder.get_vec(Image.open(paths[0]).convert("RGB"))
    start = time.perf_counter()
    for path in paths[:64]:
        encoder.get_vec(Image.open(path).convert("RGB"))
    return len(paths[:64]) / (time.perf_counter() - start)


def _latency(options: Options) -> list[Measurement]:
    """The four closest of N vectors of length 512; each contestant is a process with its own threads."""
    results = []
    for count in (1000,) if options.smoke else SIZES:
        for threads in (1,) if options.smoke else (1, 2):
            contestants: dict[str, Any] = {}
            memory: dict[str, list[float]] = {}
            for name in ("ours", "NumPy product and sort", "FAISS flat", "reading the vectors once"):
                if name == "FAISS flat" and (options.smoke or not has("faiss")):
                    continue

                def measure(name: str = name, count: int = count, threads: int = threads) -> float:
                    finished = run_process(["-m", "benchmarks.peers.search", name, str(count)], threads)
                    memory.setdefault(name, []).append(finished.peak_mb)  # noqa: B023 - read in this turn of the loop
                    return float(finished.rows[0]["milliseconds"])

                contestants[name] = measure
            what = f"exact search among {count:,} × 512, {threads} thread{'s' * (threads > 1)}"
            results.append(in_turn(Measurement(what, "ms"), contestants, options.repeats))
            results.append(Measurement(f"peak memory, {what}", "MB", memory))
    return results
