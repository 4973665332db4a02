"""The oracle: reads every attribute back from an image alone, and measures sets of images exactly.

It works by analysis through synthesis: guess the attributes, render them, and accept the guess only when the
render agrees with the image. A blend of two objects, a blurred object or an empty image is "unrecognised".
"""

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

# A clean render scores overlap 1 and error 0. The limits leave room for an autoencoder's softness (the README
# of weights/tiny/sd35 gives the share of its reconstructions that pass) and reject blends and half-drawn objects.
MIN_OVERLAP = 0.70
RIPPLE = 0.1  # of the contrast: fainter than that is a decoder's ripple, which summed over 4096 pixels is no object
MAX_COLOUR_ERROR = 0.15  # RMS over the channels, in units of [0, 1]
MAX_IMAGE_ERROR = 0.25  # RMS over pixels and channels, in units of the object's contrast with its background


@dataclass(frozen=True)
class Reading:
    """What the oracle sees in N images.

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
    """Index of the nearest palette entry of [N, 3] colours, that entry [N, 3], and the RMS distance to it [N]."""
    entries = np.array(list(palette.values()), dtype=np.float32) / 255
    distances = np.sqrt(np.mean((colours[:, None] - entries[None]) ** 2, axis=-1))
    index = distances.argmin(axis=1)
    return index, entries[index], distances.min(axis=1)


def read_ground(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The backgrounds of [N, 3, 64, 64] images, read off their borders: as `_nearest` of the colours there.

    Raises:
        ValueError: the images have another shape.
    """
    if images.ndim != 4 or images.shape[1:] != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise ValueError(f"the oracle reads [N, 3, {IMAGE_SIZE}, {IMAGE_SIZE}] images, not {list(images.shape)}")
    border = np.concatenate([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], axis=2)
    return _nearest(np.median(border, axis=2), BACKGROUNDS)


def read_images(images: np.ndarray, sizes: Mapping[str, float] = SIZES) -> Reading:
    """Recover every attribute from the images of one object alone.

    Args:
        images: [N, 3, 64, 64], float in [0, 1].
        sizes: the half extents that an object may have, in pixels, by name.

    Raises:
        ValueError: the images have another shape.
    """
    images = np.asarray(images, dtype=np.float32)
    background, ground, ground_error = read_ground(images)

    # The object's pixels stand at least half as far from the background as the farthest one (99th percentile).
    distance = np.sqrt(np.sum((images - ground[:, :, None, None]) ** 2, axis=1))
    far = np.percentile(distance.reshape(len(images), -1), 99, axis=1)
    inside = distance > 0.7 * far[:, None, None]
    weight = inside / np.maximum(inside.sum(axis=(1, 2), keepdims=True), 1)
    mean_colour = np.einsum("nhw,nchw->nc", weight.astype(np.float32), images)
    colour, paint, paint_error = _nearest(mean_colour, COLOURS)

    # Coverage: where each pixel lies on the line from the background's colour to the object's.
    line = paint - ground
    coverage = (
        np.einsum("nchw,nc->nhw", images - ground[:, :, None, None], line) / np.sum(line**2, axis=1)[:, None, None]
    )
    coverage = np.clip((coverage - RIPPLE) / (1 - 2 * RIPPLE), 0.0, 1.0)
    area = np.maximum(coverage.sum(axis=(1, 2)), 1e-6)
    pixel = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    centroid = np.stack([(coverage.sum(1) * pixel).sum(1) / area, (coverage.sum(2) * pixel).sum(1) / area], axis=1)

    templates = [(shape, size, object_mask(shape, sizes[size], centroid)) for shape in SHAPES for size in sizes]
    overlap = np.stack(
        [np.minimum(coverage, t).sum((1, 2)) / np.maximum(coverage, t).sum((1, 2)) for _, _, t in templates], axis=1
    )
    best = overlap.argmax(axis=1)
    mask = np.stack([t for _, _, t in templates], axis=1)[np.arange(len(best)), best]
    rendered = ground[:, :, None, None] + mask[:, None] * line[:, :, None, None]
    error = np.sqrt(np.mean((images - rendered) ** 2, axis=(1, 2, 3)) / np.mean(line**2, axis=1))

    size = np.array([list(sizes).index(templates[b][1]) for b in best], dtype=np.int64)
    low = np.array(list(sizes.values()))[size, None] + MARGIN
    recognised = (
        (overlap.max(axis=1) >= MIN_OVERLAP)
        & (np.maximum(ground_error, paint_error) <= MAX_COLOUR_ERROR)
        & (error <= MAX_IMAGE_ERROR)
    )
    shape = np.array([SHAPES.index(templates[b][0]) for b in best], dtype=np.int64)
    values = {"colour": colour, "shape": shape, "background": background, "size": size}
    return Reading(values, centroid, (centroid - low) / (IMAGE_SIZE - 2 * low), recognised, error)


@dataclass(frozen=True)
class PromptMetrics:
    """Oracle metrics of one prompt's images; a field is None where the prompt leaves nothing open.

    Attributes:
        accuracy: share of *all* images that are recognised and show every attribute the prompt names.
        unrecognised: share of images that are no clean render.
        coverage: attribute -> share of its values that occur among the recognised images (open attributes only).
        entropy: attribute -> Shannon entropy of its values among the recognised images, divided by that of the
            world's own (uniform) distribution: 1 is as varied as the world (open attributes only).
        spread: standard deviation of the recognised positions, mean of x and y, divided by the world's own 1/sqrt(12).
            None for prompts of two objects.
    """

    accuracy: float
    unrecognised: float
    coverage: dict[str, float]
    entropy: dict[str, float]
    spread: float | None


def variety(values: np.ndarray, num_values: int) -> tuple[float, float]:
    """Coverage and entropy of one attribute (see `PromptMetrics`) from its indices in the recognised images."""
    counts = np.bincount(values, minlength=num_values)
    share = counts[counts > 0] / max(counts.sum(), 1)
    # 0 - x, since of one value alone -x would be -0
    return float(np.mean(counts > 0)), float((0 - (share * np.log(share)).sum()) / np.log(num_values))


def measure_prompt(prompt: str, reading: Reading) -> PromptMetrics:
    """Metrics of the images of one prompt (see `PromptMetrics` for each definition).

    Raises:
        ValueError: `prompt` is no caption of the small world, or there is no image.
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
    """Means over prompts of `PromptMetrics`; coverage and entropy first averaged over a prompt's open attributes.

    `spread` is None where every prompt is of two objects.
    """

    accuracy: float
    unrecognised: float
    coverage: float
    entropy: float
    spread: float | None
    num_prompts: int

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def summarise(metrics: Sequence[PromptMetrics]) -> WorldMetrics:
    """Average over prompts; prompts that leave nothing open count for accuracy, not for coverage and entropy."""
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
