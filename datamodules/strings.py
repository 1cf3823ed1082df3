"""Numbers of several digits: composed of single ones as training goes on, and labelled lines of one's own."""

import csv
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities import rank_zero_info
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from datamodules.augmentation import BaseAugmentation
from datamodules.base import BaseDataModule, ImageDataModule, run_seed
from datamodules.composing import DIGITS, Composer, Signs
from datamodules.dataset import OUTLIER, Batch, BatchDataset
from datamodules.digits import DigitsDataModule
from datamodules.errors import UserError, reason
from datamodules.images import read_image
from datamodules.ink import SIDE
from datamodules.line_augmentation import LineAugmentation
from datamodules.lines import COLUMN, HEIGHT, crop_line
from datamodules.splits import pixel_digests, split
from datamodules.text import as_text
from datamodules.writing import write_csv

Pixels = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

WIDTH = 160  # of a line that is composed, in pixels, and the least of labelled ones
WIDEST = 2 * HEIGHT  # of a labelled one, for each of its signs; what is wider is squeezed
TABLE = "strings.csv"  # of labelled lines: file,digits


class Lines(BatchDataset):
    """Lines with their texts, after some that are composed anew in each epoch and have neither yet.

    Args:
        pixels: (N, 1, 32, W), uint8: light ink on black.
        labels: (N, L), int64: rows of ``class_names``, filled up with -1.
        names: N names.
        composed: How many lines there are before them that are yet to be composed.
    """

    def __init__(self, pixels: Pixels, labels: Labels, names: list[str], composed: int = 0) -> None:
        self.pixels, self.labels, self.composed = pixels, labels, composed
        self.names = [f"line {row}" for row in range(composed)] + names

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Fetch a batch in one indexing; what is yet to be composed is black, and its labels are -1."""
        chosen = np.asarray(rows, np.int64) - self.composed
        there = chosen >= 0
        pixels = np.zeros((len(chosen), *self.pixels.shape[1:]), np.uint8)
        labels = np.full((len(chosen), self.labels.shape[1]), OUTLIER)
        pixels[there], labels[there] = self.pixels[chosen[there]], self.labels[chosen[there]]
        return Batch(torch.from_numpy(pixels), torch.from_numpy(labels), torch.as_tensor(rows, dtype=torch.int64))


class StringsDataModule(BaseDataModule):
    """Lines of digits for a reader: composed of single ones, and labelled ones, if there are some.

    Args:
        digits: Where single digits come from, or the images of any classes, with ink on an even ground. What it holds
            out for validation no training line is composed of.
        composed: Lines an epoch that are composed.
        val_composed: Lines that are composed for validation, where there are no labelled ones.
        strings: A folder of labelled lines: images, each of one line, and ``strings.csv`` (file, digits); some are
            held out for validation, by which the network is judged then.
        repeats: How often a labelled line is trained on in an epoch.
        test_strings: Such a folder to test on.
        val_fraction: Share of the labelled lines that are held out, in (0, 1).
        split_seed: Another seed gives another split; the training seed does not matter to it.
        batch_size: Lines a step and process.
        augmentation: How labelled training lines are varied; null leaves them as they are.

    Raises:
        UserError: An argument is out of its range.
    """

    in_channels = 1
    image_size = HEIGHT
    train_set: Lines | None
    val_set: Lines | None
    test_set: Lines | None

    def __init__(
        self,
        digits: ImageDataModule | None = None,
        composed: int = 16_000,
        val_composed: int = 2_000,
        strings: str | None = None,
        repeats: int = 4,
        test_strings: str | None = None,
        val_fraction: float = 0.2,
        split_seed: int = 42,
        batch_size: int = 64,
        augmentation: BaseAugmentation | None = LineAugmentation(),
    ) -> None:
        super().__init__(val_fraction, split_seed, batch_size, augmentation)
        if composed < 0 or val_composed < 1 or repeats < 1:
            raise UserError("composed must be at least 0; val_composed and repeats at least 1")
        if composed == 0 and strings is None:
            raise UserError("there is nothing to train on: composed is 0, and strings names no folder")
        self.digits = DigitsDataModule() if digits is None else digits
        self.composed, self.val_composed, self.repeats = composed, val_composed, repeats
        self.strings, self.test_strings = strings, test_strings
        self._composer: Composer | None = None
        self._parameters: tuple[int, Tensor | None, Tensor | None] | None = None

    @property
    def class_names(self) -> list[str]:
        """The signs that are read: those of ``digits``."""
        return self.digits.class_names

    def prepare_data(self) -> None:
        """Download what ``digits`` needs, once for all processes of a machine, where lines are composed of them."""
        if self._composes("fit" if self.trainer is None else self.trainer.state.fn):
            self.digits.prepare_data()

    def _composes(self, stage: str | None) -> bool:
        """Whether lines are composed, to train on or, where none are labelled, to validate or test on."""
        if stage == "test" and self.test_strings is not None:
            return False
        return self.strings is None or (stage == "fit" and self.composed > 0)

    def setup(self, stage: str) -> None:
        """Load the digits and labelled lines; the result is the same in every stage and process.

        Raises:
            UserError: The images of ``digits`` are not strokes on an even ground, or as ``read_lines``.
        """
        if stage == "test" and self.test_strings is not None:
            self.test_set = self.test_set or read_lines(Path(self.test_strings), self.class_names)
            return
        if self.strings is not None and self.train_set is None:
            self._split(read_lines(Path(self.strings), self.class_names, leave_out=True))
        if self._composes(stage) and self._composer is None:
            val_signs = self._load_signs()
            if self.strings is None:
                self._compose_validation(Composer(val_signs, HEIGHT, WIDTH))
        if stage == "test":
            rank_zero_info("There is no test set: the validation lines are used.")
            self.test_set = self.val_set

    def _load_signs(self) -> Signs:
        """Load the digits that training lines are composed of; returns those that are held out."""
        self.digits.setup("fit")
        normalizer = self.digits.fit_normalizer()
        if normalizer is None:
            raise UserError(
                f"lines are composed of strokes on an even ground, which the images of {type(self.digits).__name__} "
                "are not"
            )
        train, val = self.digits.train_set, self.digits.val_set
        assert train is not None
        assert val is not None
        classes = len(self.class_names)
        self._composer = Composer(Signs.of(train, normalizer, classes), HEIGHT, WIDTH)
        return Signs.of(val, normalizer, classes)

    def _compose_validation(self, composer: Composer) -> None:
        numbers = composer.draw(self.split_seed, 0, self.val_composed)
        parts = [composer(part)[:2] for part in torch.split(numbers, 256)]
        pixels, labels = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
        self.val_set = Lines(pixels, labels, [f"line {row}" for row in range(len(labels))])
        self.train_set = Lines(pixels[:0], labels[:0], [], self.composed)

    def _split(self, lines: Lines) -> None:
        one_class = np.zeros(len(lines), np.int64)
        # Of each line alone: a longer one, for which all are filled up, must not deal them out anew.
        own = [line[..., : max(WIDTH, np.flatnonzero(line.any(axis=(0, 1)))[-1] + 1)] for line in lines.pixels]
        in_validation = split(one_class, pixel_digests(own), self.val_fraction, self.split_seed)
        if not in_validation.any():
            raise UserError(f"{self.strings}: at least two different lines are needed, of which one is validated")
        held, kept = np.flatnonzero(in_validation), np.tile(np.flatnonzero(~in_validation), self.repeats)
        names = np.array(lines.names)
        self.val_set = Lines(lines.pixels[held], lines.labels[held], names[held].tolist())
        self.train_set = Lines(lines.pixels[kept], lines.labels[kept], names[kept].tolist(), self.composed)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Compose and vary training lines, on the CPU; leave all others as they are."""
        if self.trainer is None or not self.trainer.training:
            return batch
        return self.augment(batch, self.trainer.current_epoch)

    def augment(self, batch: Batch, epoch: int) -> Batch:
        """Give a batch of training lines the looks that they have in an epoch.

        What each is follows from the seed, the epoch and its number alone.
        """
        assert self.train_set is not None
        if self._parameters is None or self._parameters[0] != epoch:
            seed = run_seed()
            numbers = None if self._composer is None else self._composer.draw(seed, epoch, self.composed)
            varied = None if self.augmentation is None else self.augmentation.draw(seed, epoch, len(self.train_set))
            self._parameters = epoch, numbers, varied
        _, numbers, varied = self._parameters
        images, labels = batch.images.float() / 255, batch.labels.clone()
        middles = torch.full(labels.shape, math.nan)
        fresh = batch.indices < self.composed
        if self._composer is not None and numbers is not None and fresh.any():
            composed, texts, places = self._composer(numbers[batch.indices[fresh]])
            images[fresh, :, :, :WIDTH] = composed.float() / 255  # labelled ones may be longer
            labels[fresh, : texts.shape[1]] = texts
            middles[fresh, : texts.shape[1]] = places * (WIDTH / images.shape[3])
        if varied is not None and self.augmentation is not None and not fresh.all():
            images[~fresh] = self.augmentation(batch.images[~fresh], varied[batch.indices[~fresh]])
        return batch._replace(images=images, labels=labels, middles=middles)

    def save_split(self, path: Path) -> None:
        """Write ``split.csv``: file, text and subset of every labelled line."""
        rows = [["file", "label", "subset"]]
        for subset, lines in (("train", self.train_set), ("val", self.val_set)):
            assert lines is not None
            texts = {
                name: as_text([label for label in line if label != OUTLIER], self.class_names)
                for name, line in zip(lines.names[lines.composed :], lines.labels.tolist(), strict=True)
            }
            rows += [[name, text, subset] for name, text in texts.items()]
        write_csv(path, rows)


def read_lines(folder: Path, class_names: Sequence[str], leave_out: bool = False) -> Lines:
    """Read a folder of labelled lines, each filled up with black to the width of the widest.

    Args:
        folder: Where they are.
        class_names: The signs.
        leave_out: Leave those out on which nothing is found: there is nothing to learn from them.

    Raises:
        UserError: There is no such folder, its table is damaged or names a file or a sign that isn't there, a text
            has no room on its line, or nothing is found on any of the lines.
    """
    table = folder / TABLE
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = [(row["file"] or "", row["digits"] or "") for row in csv.DictReader(file)]  # None in a short row
    except (OSError, KeyError, ValueError, csv.Error) as error:
        what = reason(error) if isinstance(error, OSError) else "not a table of the columns file,digits"
        raise UserError(f"{table}: {what}") from error
    if not rows:
        raise UserError(f"{table}: names no file")
    label_of = {name: label for label, name in enumerate(class_names)}
    texts = []
    for name, text in rows:
        if not name:
            raise UserError(f"{table}: names no file for the text {text!r}")
        if not text or any(sign not in label_of for sign in text):
            raise UserError(f"{table}: {name}: the text {text!r} is not of the signs {', '.join(class_names)}")
        texts.append([label_of[sign] for sign in text])
    labels = np.full((len(texts), max(DIGITS, *map(len, texts))), OUTLIER)
    for row, line in enumerate(texts):
        labels[row, : len(line)] = line

    def read(row: tuple[str, str]) -> Pixels:
        line = crop_line(read_image(folder / row[0], channels=3, side=SIDE), HEIGHT)
        widest = max(WIDTH, WIDEST * len(row[1]))  # or else one dash would widen all
        if line.shape[1] > widest:
            line = np.asarray(Image.fromarray(line).resize((widest, HEIGHT), Image.Resampling.BILINEAR))
        return line

    names = [name for name, _ in rows]
    with ThreadPoolExecutor() as pool:
        found = list(tqdm(pool.map(read, rows), total=len(rows), desc="Reading lines", delay=2, leave=False))
    width = max(WIDTH, *(line.shape[1] for line in found))
    for line, (name, text) in zip(texts, rows, strict=True):
        # Between two signs that are the same a column must be blank: the loss of what has no room would be 0.
        if len(line) + sum(sign == after for sign, after in pairwise(line)) > width // COLUMN:
            raise UserError(f"{table}: {name}: the text {text!r} has no room in the line's {width // COLUMN} columns")
    pixels = np.stack([np.pad(line, ((0, 0), (0, width - line.shape[1]))) for line in found])[:, None]
    seen = np.array([line.any() for line in found])
    if not seen.any():
        raise UserError(f"{folder}: nothing was found on any of the {len(names)} lines")
    if not seen.all():
        blank = [name for name, there in zip(names, seen, strict=True) if not there]
        shown = ", ".join(blank[:3]) + (", …" if blank[3:] else "")
        left = ", which are left out" if leave_out else ""
        rank_zero_info(f"{folder}: nothing was found on {len(blank)} of {len(names)} lines ({shown}){left}")
    kept = seen | (not leave_out)
    return Lines(pixels[kept], labels[kept], np.array(names)[kept].tolist())
