"""Which regions of an image make it similar to a query, laid over it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image

from datamodules.images import read_image
from retrieval.encoders.base import Box, Encoder
from retrieval.query import Example, Query, encode_queries, read_example


def explainer(query: Query, encoder: Encoder, side: int) -> Callable[[Path], Image.Image]:
    """What reads an image and lays over it which regions make it similar to a query.

    Args:
        query: An image, the path of one, a part of one, or several, as for ``ImageIndex.search``.
        encoder: What the index was made with.
        side: Pixels that an explained image gets at most.

    Returns:
        A function from the path of an image to the explained image; it raises a ``UserError`` if that can't be read.

    Raises:
        UserError: The query can't be read.
    """
    (vector,), _ = encode_queries([query], encoder)

    def explain(path: Path) -> Image.Image:
        image = read_image(path, channels=3, side=encoder.max_side)
        pixels, _ = read_example(Example(image), encoder)
        image = encoder.seen(image)
        image.thumbnail((side, side))
        return overlay(image, encoder.similarity_map(pixels, vector), encoder.box(*image.size))

    return explain


def overlay(image: Image.Image, regions: npt.NDArray[np.float32], box: Box) -> Image.Image:
    """Lay a map of regions over the part of an image that the encoder sees; what adds nothing stays clear.

    Args:
        image: Mode ``RGB``.
        regions: (h, w), as ``Encoder.similarity_map`` gives it.
        box: Which part the map is of: left, top, right, bottom, in pixels of the image.
    """
    strength = np.clip(regions / max(float(regions.max()), 1e-12), 0, 1)
    left, top, right, bottom = (round(edge) for edge in box)
    heat = Image.fromarray(strength).resize((max(right - left, 1), max(bottom - top, 1)), Image.Resampling.BILINEAR)
    colours = colormaps["inferno"](np.asarray(heat), bytes=True)
    colours[..., 3] = 166 * np.asarray(heat)  # 65 % where it is strongest
    layer = Image.new("RGBA", image.size)
    layer.paste(Image.fromarray(colours), (left, top))
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")
