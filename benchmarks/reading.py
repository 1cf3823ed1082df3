"""The reader that comes with the package, on numbers of several digits as people write them."""

import csv
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.harness import Measurement, Options, say
from datamodules.images import read_image
from datamodules.ink import SIDE
from datamodules.lines import find_lines
from datamodules.strings import TABLE, read_lines
from lightning_modules.checkpoint import load_network
from lightning_modules.ctc import sign_accuracy
from lightning_modules.embedded import READER
from lightning_modules.networks import LineReader
from lightning_modules.number_reading import read_picture
from lightning_modules.reading import read_dataset

Numbers = list[list[str]]


def run(options: Options) -> list[Measurement]:
    """Exact texts and signs of labelled lines, whole sheets, and how long they take."""
    torch.set_num_threads(options.threads)
    model = load_network(READER, LineReader)
    results = []
    folder = None if options.data is None or options.smoke else options.data / "data" / "handwriting" / "strings"
    if folder is None or not folder.is_dir():
        say("reading: needs data/handwriting/strings in --data-root for cheques' amounts; left out")
    else:
        results += strings(model, folder)
    for name, texts in {"grid": [["1"] * 10] * 6, "ruled": [["1234", "56", "789", "10", "234"]] * 5}.items():
        results += sheet(model, name, texts, ruled=name == "ruled")
    return results


def strings(model: LineReader, folder: Path) -> list[Measurement]:
    """A folder of labelled lines, each taken as one line, and as any picture."""
    lines = read_lines(folder, model.class_names)
    found = read_dataset(model, lines)
    with (folder / TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    any_picture = [read_picture(model, read_image(folder / row["file"], 3, SIDE)) for row in rows]
    exact = [
        [number.text for number in numbers] == [row["digits"]] for numbers, row in zip(any_picture, rows, strict=True)
    ]
    before, after = found.calibration_errors
    note = f"calibration error {100 * after:.1f} %, {100 * before:.1f} % before temperature"
    shares = {
        "whole texts": (found.right.float().mean().item(), note),
        "digits": (found.sign_accuracy, "1 - edit distance / length"),
        "whole texts, found as on any picture": (float(np.mean(exact)), ""),
    }
    return [
        Measurement(f"{len(rows)} amounts, {name}", "% right", {"ours": [100 * share]}, said)
        for name, (share, said) in shares.items()
    ]


def sheet(model: LineReader, name: str, shape: Numbers, ruled: bool) -> list[Measurement]:
    """A sheet of scikit-learn's digits, 12 megapixels: how much of it is read, in order, and how long it takes."""
    picture, texts = draw_sheet(shape, ruled)
    read_picture(model, picture)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        numbers = read_picture(model, picture)
        seconds.append(time.perf_counter() - started)
    expected = [f"{row}:{text}" for row, line in enumerate(texts) for text in line]
    found = [f"{number.row}:{number.text}" for number in numbers]
    right = 100 * max(0.0, sign_accuracy([found], [expected]))
    lines = find_lines(picture, model.image_size)
    image = torch.from_numpy(lines[0].pixels.copy())[None, None]
    started = time.perf_counter()
    with torch.inference_mode():
        for _ in range(20):
            model(image)
    line = 1e3 * (time.perf_counter() - started) / 20
    note = f"{len(found)} found of {len(expected)}; 1 - edit distance / numbers, by row and text"
    return [
        Measurement(f"sheet, {name}", "% right", {"ours": [right]}, note),
        Measurement(f"sheet, {name}, 12 megapixels", "s", {"ours": seconds}),
        Measurement(f"sheet, {name}, a line by the network alone", "ms", {"ours": [line]}),
    ]


def draw_sheet(shape: Numbers, ruled: bool, size: tuple[int, int] = (4000, 3000)) -> tuple[Image.Image, Numbers]:
    """Numbers as long as those of a shape, in dark ink on paper in a shadow, photographed askew; and their texts."""
    digits = load_digits()
    generator = np.random.default_rng(0)
    ink = Image.new("L", size)
    texts: Numbers = []
    for row, line in enumerate(shape):
        texts.append([])
        for place, number in enumerate(line):
            left, top = 250 + place * 3600 // len(line), 250 + row * 2600 // len(shape)
            chosen = [int(generator.integers(len(digits.target))) for _ in number]
            for step, which in enumerate(chosen):
                image = Image.fromarray((digits.images[which] * 15).astype(np.uint8))
                ink.paste(image.resize((150, 190), Image.Resampling.BICUBIC), (left + 130 * step, top))
            texts[-1].append("".join(str(digits.target[which]) for which in chosen))
    drawn = np.asarray(ink.rotate(1.0, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    paper = np.full(size[::-1], 215.0, np.float32) * np.linspace(1, 0.7, size[0], dtype=np.float32)
    if ruled:
        for width in range(6):
            paper[width + 480 :: 520] -= 60
    pixels = paper * (1 - drawn) + 45 * drawn + generator.normal(0, 3, drawn.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert("RGB"), texts
