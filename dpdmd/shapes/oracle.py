"""The oracle: read every attribute from an image of one object, and measure sets of images.

It works by analysis through synthesis: guess the attributes, render them, and accept the guess only if the render
agrees with the image. A blend of two objects, a blurred object or an empty image is "unrecognised".
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dpdmd.shapes.world import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLOURS,
    IMAGE_SIZE,
    MARGIN,
    SHAPES,
    SIZES,
    object_mask,
    parse_caption,
)

# A clean render has overlap 1 and error 0. The limits accept the blur of an autoencoder (weights/tiny/README.md gives
# the share of its reconstructions that pass) and reject blends and incomplete objects.
MIN_OVERLAP = 0.70
RIPPLE = (
    0.1  # of the contrast: weaker signals are ripples of a decoder, which must not add up to an object over 4096 pixels
)
MAX_COLOUR_ERROR = 0.15  # RMS over the channels, in units of [0, 1]
MAX_IMAGE_ERROR = 0.25  # RMS over pixels and channels, in units of the object's contrast with its background


@dataclass(frozen=True)
class Reading:
    """Attributes of N images, as the oracle reads them.

    Attributes:
        values: attribute name -> [N] index into `ATTRIBUTES[name]`; meaningless where not recognised.
        centre: [N, 2] pixels: (x, y) of the object's centre.
        position: [N, 2] in about [0, 1]: the same, relative to where an object of that size may lie.
        recognised: [N] bool; False where the image is no clean render.
        error: [N] RMS difference between an image and the render of its reading, divided by the RMS difference of
            the two colours read, so that a limit means the same for cyan on black and for blue on brown.
    """

    values: dict[str, np.ndarray]
    centre: np.ndarray
    position: np.ndarray
    recognised: np.ndarray
    error: np.ndarray


def _nearest(
    colours: np.ndarray, palette: dict[str, tuple[int, int, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the index of the nearest palette entry of [N, 3] colours, this entry [N, 3], and its RMS distance [N]."""
    entries = np.array(list(palette.values()), dtype=np.float32) / 255
    distances = np.sqrt(np.mean((colours[:, None] - entries[None]) ** 2, axis=-1))
    index = distances.argmin(axis=1)
    return index, entries[index], distances.min(axis=1)


def read_ground(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read the backgrounds of [N, 3, 64, 64] images from their borders; return what `_nearest` returns.

    Raises:
        ValueError: the images have a different shape.
    """
    if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"the oracle reads [N, 3, {IMAGE_SIZE}, {IMAGE_SIZE}] images, not {list(images.shape)}")
    border = np.concatenate([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], axis=2)
    return _nearest(np.median(border, axis=2), BACKGROUNDS)


def read_images(images: np.ndarray, sizes: Mapping[str, float] = SIZES) -> Reading:
    """Read every attribute from images of one object.

    Args:
        images: [N, 3, 64, 64], float in [0, 1].
        sizes: name -> half extent in pixels that an object may have.

    Raises:
        ValueError: the images have a different shape.
    """
    images = np.asarray(images, dtype=np.float32)
    background, ground, ground_error = read_ground(images)
    colour, paint, paint_error = _nearest(_object_colour(images, ground), COLOURS)
    line = paint - ground
    coverage = _coverage(images, ground, line)
    pixel = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    area = np.maximum(coverage.sum(axis=(1, 2)), 1e-6)
    centre = np.stack([(coverage.sum(1) * pixel).sum(1) / area, (coverage.sum(2) * pixel).sum(1) / area], axis=1)
    shape, size, overlap, mask = _match(coverage, centre, sizes)
    rendered = ground[:, :, None, None] + mask[:, None] * line[:, :, None, None]
    error = np.sqrt(np.mean((images - rendered) ** 2, axis=(1, 2, 3)) / np.mean(line**2, axis=1))
    low = np.array(list(sizes.values()))[size, None] + MARGIN
    recognised = (
        (overlap >= MIN_OVERLAP)
        & (np.maximum(ground_error, paint_error) <= MAX_COLOUR_ERROR)
        & (error <= MAX_IMAGE_ERROR)
    )
    values = {"colour": colour, "shape": shape, "background": background, "size": size}
    return Reading(values, centre, (centre - low) / (IMAGE_SIZE - 2 * low), recognised, error)


def _object_colour(images: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Return the mean colour [N, 3] of the pixels that differ most from the background."""
    distance = np.sqrt(np.sum((images - ground[:, :, None, None]) ** 2, axis=1))
    far = np.percentile(distance.reshape(len(images), -1), 99, axis=1)
    inside = distance > 0.7 * far[:, None, None]
    weight = inside / np.maximum(inside.sum(axis=(1, 2), keepdims=True), 1)
    return np.einsum("nhw,nchw->nc", weight.astype(np.float32), images)


def _coverage(images: np.ndarray, ground: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Project each pixel on the line from the background's colour to the object's: [N, H, W] in [0, 1]."""
    along = np.einsum("nchw,nc->nhw", images - ground[:, :, None, None], line)
    along = along / np.sum(line**2, axis=1)[:, None, None]
    return np.clip((along - RIPPLE) / (1 - 2 * RIPPLE), 0.0, 1.0)


def _match(
    coverage: np.ndarray, centre: np.ndarray, sizes: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return shape, size and overlap [N] of the best template, and its mask [N, H, W]."""
    kinds = list(itertools.product(range(len(SHAPES)), sizes))
    masks = np.stack([object_mask(SHAPES[shape], sizes[size], centre) for shape, size in kinds], axis=1)
    common, union = np.minimum(coverage[:, None], masks), np.maximum(coverage[:, None], masks)
    overlap = common.sum((2, 3)) / union.sum((2, 3))
    best = overlap.argmax(axis=1)
    shape, size = np.array([(shape, list(sizes).index(size)) for shape, size in kinds])[best].T
    rows = np.arange(len(best))
    return shape, size, overlap[rows, best], masks[rows, best]


@dataclass(frozen=True)
class PromptMetrics:
    """Oracle metrics of one prompt's images. An attribute is open if the prompt does not name it.

    Attributes:
        accuracy: share of *all* images that are recognised and show every attribute that the prompt names.
        unrecognised: share of images that are not a clean render.
        coverage: open attribute -> share of its values that occur among the recognised images.
        entropy: open attribute -> Shannon entropy of its values among the recognised images, divided by that of the
            world's (uniform) distribution: 1 is as diverse as the world.
        spread: standard deviation of the recognised positions, mean of x and y, divided by the world's, 1/sqrt(12).
            None for prompts of two objects.
    """

    accuracy: float
    unrecognised: float
    coverage: dict[str, float]
    entropy: dict[str, float]
    spread: float | None


def variety(values: np.ndarray, num_values: int) -> tuple[float, float]:
    """Return coverage and entropy of one attribute (see `PromptMetrics`) from its indices in the recognised images."""
    counts = np.bincount(values, minlength=num_values)
    share = counts[counts > 0] / max(counts.sum(), 1)
    # 0 - x, since -x is -0 for a single value
    return float(np.mean(counts > 0)), float((0 - (share * np.log(share)).sum()) / np.log(num_values))


def measure_prompt(prompt: str, reading: Reading) -> PromptMetrics:
    """Measure the images of one prompt of one object (see `PromptMetrics` for each definition).

    Raises:
        ValueError: `prompt` is not a caption of one object, or there is no image.
    """
    named = parse_caption(prompt)
    if len(reading.recognised) == 0:
        raise ValueError(f"no image to measure for {prompt!r}")
    right = reading.recognised.copy()
    for name, value in named.items():
        right &= reading.values[name] == ATTRIBUTES[name].index(value)
    coverage, entropy = {}, {}
    for name, values in ATTRIBUTES.items():
        if name not in named:
            coverage[name], entropy[name] = variety(reading.values[name][reading.recognised], len(values))
    seen = reading.position[reading.recognised]
    spread = float(seen.std(axis=0).mean() * np.sqrt(12)) if len(seen) > 1 else 0.0
    return PromptMetrics(float(right.mean()), float(1 - reading.recognised.mean()), coverage, entropy, spread)


@dataclass(frozen=True)
class WorldMetrics:
    """Means of `PromptMetrics` over prompts. Coverage and entropy are first averaged over a prompt's open attributes.

    `spread` is None if every prompt is of two objects.
    """

    accuracy: float
    unrecognised: float
    coverage: float
    entropy: float
    spread: float | None
    num_prompts: int

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def mean_metrics(metrics: Sequence[PromptMetrics]) -> WorldMetrics:
    """Average over prompts. Prompts without open attributes count for accuracy, not for coverage and entropy."""
    open_prompts = [m for m in metrics if m.entropy]
    spreads = [m.spread for m in metrics if m.spread is not None]
    return WorldMetrics(
        accuracy=float(np.mean([m.accuracy for m in metrics])),
        unrecognised=float(np.mean([m.unrecognised for m in metrics])),
        coverage=float(np.mean([np.mean(list(m.coverage.values())) for m in open_prompts])) if open_prompts else 1.0,
        entropy=float(np.mean([np.mean(list(m.entropy.values())) for m in open_prompts])) if open_prompts else 1.0,
        spread=float(np.mean(spreads)) if spreads else None,
        num_prompts=len(metrics),
    )
