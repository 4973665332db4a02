"""The oracle for images of two objects: split an image at the gap between them, and read each part as an image."""

from dataclasses import dataclass

import numpy as np

from dpdmd.shapes.oracle import PromptMetrics, Reading, read_ground, read_images, variety
from dpdmd.shapes.pairs import HALF_EXTENT, RELATIONS, TOGETHER, parse_caption
from dpdmd.shapes.world import ATTRIBUTES

FAINT = 0.2  # smallest distance of an object from the background; black to white is 3**0.5, the closest two colours .44
MIN_APART = 2 * HALF_EXTENT - 2  # pixels between centres along an axis, from which one object is beside the other


@dataclass(frozen=True)
class PairReading:
    """Attributes of N images of two objects, as the oracle reads them.

    Attributes:
        objects: the readings of the two objects; their order is not that of a caption.
        centres: [N, 2, 2] pixels, (x, y) of each object.
        recognised: [N] bool; False if an image does not show two clean renders with a gap between them.
    """

    objects: tuple[Reading, Reading]
    centres: np.ndarray
    recognised: np.ndarray

    def shows(self, first: int, named: dict[str, str]) -> np.ndarray:
        """Return whether object `first` and the other match a caption's first and second object: [N] bool."""
        one, other = self.objects[first], self.objects[1 - first]
        right = self.recognised.copy()
        for name in ("colour", "shape"):
            for reading, value in ((one, named.get(name)), (other, named.get(f"second_{name}"))):
                if value:
                    right &= reading.values[name] == ATTRIBUTES[name].index(value)
        if named["relation"] != TOGETHER:
            axis, sign = RELATIONS[named["relation"]]
            right &= sign * (self.centres[:, first, axis] - self.centres[:, 1 - first, axis]) >= MIN_APART
        return right


def _gap(occupied: np.ndarray) -> int | None:
    """Return the middle of the gap between two runs of True; None if there are not exactly two runs."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], occupied, [False]]).astype(np.int8)))
    return int(edges[1] + edges[2]) // 2 if len(edges) == 4 else None


def read_pairs(images: np.ndarray) -> PairReading:
    """Read both objects of each image.

    Args:
        images: [N, 3, 64, 64], float in [0, 1].

    Raises:
        ValueError: the images have a different shape.
    """
    images = np.asarray(images, dtype=np.float32)
    _, ground, _ = read_ground(images)
    inside = np.sqrt(np.sum((images - ground[:, :, None, None]) ** 2, axis=1)) > FAINT
    parts = np.stack([images, images])
    split = np.zeros(len(images), dtype=bool)
    for index, mask in enumerate(inside):
        across, down = _gap(mask.any(axis=0)), _gap(mask.any(axis=1))
        fill = ground[index, :, None, None]
        if across is not None:
            parts[0, index, :, :, across:] = fill
            parts[1, index, :, :, :across] = fill
        elif down is not None:
            parts[0, index, :, down:] = fill
            parts[1, index, :, :down] = fill
        split[index] = across is not None or down is not None
    first, second = (read_images(part, {"small": HALF_EXTENT}) for part in parts)
    centres = np.stack([reading.centre for reading in (first, second)], axis=1)
    return PairReading((first, second), centres, split & first.recognised & second.recognised)


def measure_pair_prompt(prompt: str, reading: PairReading) -> PromptMetrics:
    """Measure the images of one prompt of two objects. Of the open attributes, only the background is measured.

    An image is right if its two objects, in either order, match the prompt's objects and their relation.

    Raises:
        ValueError: `prompt` is not a caption of two objects, or there is no image.
    """
    named = parse_caption(prompt)
    if "relation" not in named:
        raise ValueError(f"{prompt!r} names one object")
    if len(reading.recognised) == 0:
        raise ValueError(f"no image to measure for {prompt!r}")
    right = reading.shows(0, named) | reading.shows(1, named)
    backgrounds = reading.objects[0].values["background"][reading.recognised]
    coverage, entropy = variety(backgrounds, len(ATTRIBUTES["background"]))
    return PromptMetrics(
        accuracy=float(right.mean()),
        unrecognised=float(1 - reading.recognised.mean()),
        coverage={"background": coverage},
        entropy={"background": entropy},
        spread=None,
    )
