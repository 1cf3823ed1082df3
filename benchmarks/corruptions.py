"""The fifteen corruptions of MNIST-C (Mu & Gilmer 2019, https://arxiv.org/abs/1906.02337), of whole sets of images.

Each takes (N, 28, 28), float64 in [0, 1], light digits on black, and a generator, and gives the same; of the strength
that the published set has. ImageMagick's motion blur is resampled bilinearly here.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.feature import canny

Images = npt.NDArray[np.float64]
Corruption = Callable[[Images, np.random.Generator], Images]

SIDE = 28
MIDDLE = (SIDE - 1) / 2


def shot_noise(images: Images, generator: np.random.Generator) -> Images:
    """Photons that are counted: three of a white pixel."""
    return generator.poisson(3 * images) / 3


def impulse_noise(images: Images, generator: np.random.Generator) -> Images:
    """Every sixth pixel black or white."""
    hit = generator.random(images.shape) < 0.17
    return np.where(hit, generator.integers(2, size=images.shape), images)


def glass_blur(images: Images, generator: np.random.Generator) -> Images:
    """Pixels change places with neighbours, between two blurs."""
    seen = np.floor(255 * _blur(images, 0.7)) / 255
    for _ in range(2):
        for row in range(SIDE - 1, 1, -1):
            for column in range(SIDE - 1, 1, -1):
                chosen = np.flatnonzero(generator.random(len(images)) < 0.5)
                other_row, other_column = np.array([[row], [column]]) - generator.integers(2, size=(2, len(chosen)))
                here = seen[chosen, row, column]
                seen[chosen, row, column] = seen[chosen, other_row, other_column]
                seen[chosen, other_row, other_column] = here
    return _blur(seen, 0.7)


def motion_blur(images: Images, generator: np.random.Generator) -> Images:
    """Smeared to one side, by up to 45° from the horizontal."""
    angles = np.deg2rad(generator.uniform(-45, 45, len(images)))
    weights = np.exp(-(np.arange(11) ** 2) / (2 * 3**2))
    blurred = np.zeros_like(images)
    number, rows, columns = np.indices(images.shape)
    for step, weight in enumerate(weights / weights.sum()):
        down, across = (step * turned(angles)[:, None, None] for turned in (np.sin, np.cos))
        blurred += weight * ndimage.map_coordinates(
            images, (number, rows + down, columns + across), order=1, mode="nearest"
        )
    return blurred


def shear(images: Images, generator: np.random.Generator) -> Images:
    """Slanted by 0.4 radians to either side."""
    angles = 0.4 * generator.choice((-1, 1), len(images))
    return _warp(images, [np.array([[np.cos(angle), 0], [-np.sin(angle), 1]]) for angle in angles])


def scale(images: Images, generator: np.random.Generator) -> Images:
    """At seven tenths of the size."""
    return _warp(images, [np.eye(2) / 0.7] * len(images))


def rotate(images: Images, generator: np.random.Generator) -> Images:
    """By 0.4 radians to either side."""
    angles = 0.4 * generator.choice((-1, 1), len(images))
    return _warp(
        images,
        [np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) for angle in angles],
    )


def brightness(images: Images, generator: np.random.Generator) -> Images:
    """Half as bright as white everywhere."""
    return images + 0.5


def translate(images: Images, generator: np.random.Generator) -> Images:
    """By three pixels in both directions."""
    return np.stack([ndimage.shift(image, 3 * generator.choice((-1, 1), 2), order=1) for image in images])


def stripe(images: Images, generator: np.random.Generator) -> Images:
    """The outer quarters inverted."""
    outer = np.abs(np.arange(SIDE) - MIDDLE) > 7
    return np.where(outer, 1 - images, images)


def fog(images: Images, generator: np.random.Generator) -> Images:
    """Three times as bright clouds before it."""
    clouds = np.stack([_clouds(generator)[:SIDE, :SIDE] for _ in images])
    brightest = images.max(axis=(1, 2), keepdims=True)
    return (images + 3 * clouds) * brightest / (brightest + 3)


def spatter(images: Images, generator: np.random.Generator) -> Images:
    """Spots of mud."""
    mud = _blur((_blur(generator.normal(0.65, 0.3, images.shape), 1) > 0.65).astype(float), 1.5)
    mud[mud < 0.8] = 0
    return images * (1 - mud) + 63 / 255 * mud


def dotted_line(images: Images, generator: np.random.Generator) -> Images:
    """A dotted line from one side to the other."""
    gaps = np.arange(SIDE) // 2 % 2 == 0
    ends = generator.integers(27, size=(len(images), 2))
    return images + [np.where(gaps, 0, _line(0, first, 27, last)) for first, last in ends]


def zigzag(images: Images, generator: np.random.Generator) -> Images:
    """A line in zigzag from one side to the other."""
    lines = []
    for _ in images:
        left, right, first = 2, 25, generator.integers(27)
        angle = np.arctan(generator.integers(-5, 5) / (right - left))
        length = (right - left) / np.cos(angle)
        along = np.array([0, *np.arange(2, length, 4), length])
        across = np.array([0, *(2 * (-1) ** np.arange(len(along) - 2)), 0])
        columns = left + along * np.cos(angle) - across * np.sin(angle)
        rows = first + along * np.sin(angle) + across * np.cos(angle)
        parts = zip(columns, rows, columns[1:], rows[1:], strict=False)
        lines.append(np.sum([_line(*part) for part in parts], axis=0))
    return images + lines


def canny_edges(images: Images, generator: np.random.Generator) -> Images:
    """The edges alone."""
    return np.stack([canny(image) for image in images]).astype(float)


CORRUPTIONS: tuple[Corruption, ...] = (
    shot_noise,
    impulse_noise,
    glass_blur,
    motion_blur,
    shear,
    scale,
    rotate,
    brightness,
    translate,
    stripe,
    fog,
    spatter,
    dotted_line,
    zigzag,
    canny_edges,
)


def corrupt(pixels: npt.NDArray[np.uint8], corruption: Corruption, seed: int = 0) -> npt.NDArray[np.uint8]:
    """(N, 28, 28), uint8 -> the same, corrupted."""
    changed = corruption(pixels / 255, np.random.default_rng(seed))
    return (255 * np.clip(changed, 0, 1)).astype(np.uint8)


def _blur(images: Images, sigma: float) -> Images:
    blurred: Images = ndimage.gaussian_filter(images, (0, sigma, sigma), mode="nearest")
    return blurred


def _warp(images: Images, matrices: list[Images]) -> Images:
    """Each image by its matrix, from where a pixel is to where it is taken from (row, column), about the middle."""
    middle = np.full(2, MIDDLE)
    return np.stack(
        [
            ndimage.affine_transform(image, matrix, middle - matrix @ middle, order=1)
            for image, matrix in zip(images, matrices, strict=True)
        ]
    )


def _line(left: float, first: float, right: float, last: float) -> Images:
    """(28, 28): a line between two points, which fades to nothing 2.3 pixels above and below it."""
    columns, rows = np.arange(SIDE), np.arange(SIDE)[:, None]
    distance = np.abs(rows - first - (last - first) / (right - left) * (columns - left))
    brightness = np.log(1 - np.minimum(distance, 2.3 - 1e-10) / 2.3) + 1
    return np.where((columns >= np.floor(left)) & (columns < np.ceil(right)), np.clip(brightness, 0, 1), 0)


def _clouds(generator: np.random.Generator, side: int = 256, decay: float = 1.4) -> Images:
    """(256, 256) in [0, 1]: a landscape by the diamond-square algorithm, whose detail fades by ``decay``."""
    heights = np.zeros((side, side))
    step, rough = side, 100.0
    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        middles = corners + np.roll(corners, -1, 0)
        middles = (middles + np.roll(middles, -1, 1)) / 4
        heights[half::step, half::step] = middles + rough * generator.uniform(-rough, rough, middles.shape)
        middles, corners = heights[half::step, half::step], heights[::step, ::step]
        above = (middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1)) / 4
        heights[::step, half::step] = above + rough * generator.uniform(-rough, rough, above.shape)
        beside = (middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0)) / 4
        heights[half::step, ::step] = beside + rough * generator.uniform(-rough, rough, beside.shape)
        step, rough = half, rough / decay
    heights -= heights.min()
    clouds: Images = heights / heights.max()
    return clouds
