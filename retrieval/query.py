"""What is searched with: an image, a part of one, or several together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.errors import UserError
from datamodules.images import ImageError, convert_image, decode_image, read_bytes
from datamodules.splits import digest
from retrieval.encoders.base import Encoder, Pixels
from retrieval.search import Vectors

Region = tuple[int, int, int, int]
Picture = str | Path | Image.Image

CANCELLED = 0.05  # length of a sum of vectors of length 1 below which it points nowhere


@dataclass(frozen=True)
class Example:
    """An image that a query is made of, or a part of it.

    Attributes:
        image: An image, or the path of one.
        region: The part that counts: left, upper, right and lower edge, in pixels of the upright image; None is all.
        weight: 1 for what is looked for, -1 for what is not.
    """

    image: Picture
    region: Region | None = None
    weight: float = 1.0

    def __str__(self) -> str:
        """The path, and the region."""
        path = "image" if isinstance(self.image, Image.Image) else str(self.image)
        return path if self.region is None else f"{path} [{','.join(map(str, self.region))}]"

    def cut(self, image: Image.Image) -> Image.Image:
        """The part of the upright image that counts.

        Raises:
            UserError: The region does not lie in it.
        """
        if self.region is None:
            return image
        left, top, right, bottom = self.region
        if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
            which = "" if isinstance(self.image, Image.Image) else f"{self.image}: "
            raise ImageError(
                f"{which}the region {left},{top},{right},{bottom} (left, top, right, bottom) does not lie in the image "
                f"of {image.width} × {image.height} pixels"
            )
        return image.crop(self.region)


Query = Picture | Example | Sequence[Example]


def parse_region(text: str) -> Region:
    """The region that a text names by its edges: ``LEFT,TOP,RIGHT,BOTTOM``.

    Raises:
        UserError: The text is something else.
    """
    try:
        left, top, right, bottom = map(int, text.split(","))
    except ValueError as error:
        raise UserError(f"expected four pixel coordinates LEFT,TOP,RIGHT,BOTTOM, got {text}") from error
    return left, top, right, bottom


def examples_of(query: Query) -> list[Example]:
    """The images that a query is made of.

    Raises:
        UserError: There are none.
    """
    if isinstance(query, str | Path | Image.Image):
        return [Example(query)]
    examples = [query] if isinstance(query, Example) else list(query)
    if not examples:
        raise UserError("a query needs an image")
    return examples


def describe(query: Query) -> str:
    """A query in words, such as ``a.jpg + b.jpg - c.jpg``."""
    first, *others = examples_of(query)
    rest = "".join(f" {'-' if example.weight < 0 else '+'} {example}" for example in others)
    return f"{'- ' if first.weight < 0 else ''}{first}{rest}"


def read_example(example: Example, encoder: Encoder) -> tuple[Pixels, bytes | None]:
    """Pixels of an example, (C, H, W), uint8, and the digest of its file; None for an image without a file.

    Raises:
        UserError: The file can't be read, or the region does not lie in it.
    """
    if isinstance(example.image, Image.Image):
        image = convert_image(example.image, encoder.channels)
        return encoder.prepare(example.cut(image)), None
    path = Path(example.image)
    data = read_bytes(path)
    if example.region is None:
        image = decode_image(data, path, encoder.channels, encoder.max_side)
    else:
        image = decode_image(data, path, encoder.channels, all_pixels=True)
    return encoder.prepare(example.cut(image)), digest(data)


def encode_queries(queries: Iterable[Query], encoder: Encoder) -> tuple[Vectors, list[set[bytes]]]:
    """Vectors of queries, and what they must not find: themselves.

    That of several images together is their weighted sum, brought to length 1; that of one alone is its own.

    Returns:
        (Q, D), float32, of length 1; and for each query the contents of its files.

    Raises:
        UserError: A file can't be read, a region does not lie in its image, or images cancel each other out.
    """
    asked = [examples_of(query) for query in queries]
    waiting = (example for examples in asked for example in examples)
    batches, found = [], []
    while batch := [read_example(example, encoder) for example in islice(waiting, encoder.batch_size)]:
        batches.append(encoder.encode([pixels for pixels, _ in batch]))
        found += [content for _, content in batch]
    encoded, contents = iter(np.concatenate(batches)), iter(found)
    vectors, without = [], []
    for examples in asked:
        vector = sum(np.float32(example.weight) * next(encoded) for example in examples)
        if len(examples) > 1 or examples[0].weight != 1:  # an image alone keeps its vector to the last bit
            length = np.linalg.norm(vector)
            if length < CANCELLED:
                raise UserError(f"{describe(examples)}: the images cancel each other out")
            vector = vector / length
        vectors.append(vector)
        without.append({content for _ in examples if (content := next(contents)) is not None})
    return np.stack(vectors), without
