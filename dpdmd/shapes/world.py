"""The small world: its scenes, its captions and its renderer.

An image shows one object. Its colour, shape, size, background and position are independent and uniform. A caption
names a subset of the first four; the diversity of a prompt is that of the attributes that it does not name.
"""

import itertools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dpdmd.utils.rng import numpy_generator

IMAGE_SIZE = 64

# sRGB, chosen far apart: the closest object colour and background have distance 111; white to black is 441.
COLOURS = {
    "red": (222, 45, 45),
    "green": (45, 165, 70),
    "blue": (45, 80, 220),
    "yellow": (240, 210, 50),
    "purple": (150, 55, 190),
    "cyan": (70, 205, 225),
}
BACKGROUNDS = {"white": (245, 245, 245), "grey": (128, 128, 128), "black": (18, 18, 18), "brown": (110, 70, 35)}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 12.0, "large": 19.0}  # half extent in pixels
MARGIN = 4.0  # pixels between an object and the border, so that the border shows only background

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "background": tuple(BACKGROUNDS),
    "size": tuple(SIZES),
}


class World(Protocol):
    """Functions of a world that the builders use: this module, or `dpdmd.shapes.pairs`."""

    ATTRIBUTES: dict[str, tuple[str, ...]]

    def sample_scene(self, seed: int, index: int) -> Any: ...

    def sample_caption(self, scene: Any, seed: int, index: int) -> str: ...

    def parse_caption(self, text: str) -> dict[str, str]: ...

    def all_captions(self) -> list[str]: ...

    def render(self, scenes: list[Any]) -> np.ndarray: ...


@dataclass(frozen=True)
class Scene:
    """Attributes of one image; `position` is (x, y) in [0, 1], relative to the area allowed for its size."""

    colour: str
    shape: str
    background: str
    size: str
    position: tuple[float, float]

    @property
    def centre(self) -> tuple[float, float]:
        """Return the centre of the object in pixels, (x, y), with the image's corner at (0, 0)."""
        low = SIZES[self.size] + MARGIN
        x, y = (low + u * (IMAGE_SIZE - 2 * low) for u in self.position)
        return x, y


def sample_scene(seed: int, index: int) -> Scene:
    """Return scene number `index` of the world `seed`: every attribute and the position is uniform and independent."""
    random = numpy_generator(seed, "scene", index)
    named = {name: values[random.integers(len(values))] for name, values in ATTRIBUTES.items()}
    return Scene(**named, position=(float(random.random()), float(random.random())))


def caption(named: dict[str, str]) -> str:
    """Return the caption that names exactly these attributes: "a small red circle on a grey background"."""
    words = ["a", named.get("size"), named.get("colour"), named.get("shape", "shape")]
    if "background" in named:
        words += ["on a", named["background"], "background"]
    return " ".join(word for word in words if word)


def sample_caption(scene: Scene, seed: int, index: int) -> str:
    """Return a true caption of `scene` that names each attribute with probability 1/2."""
    keep = numpy_generator(seed, "caption", index).random(len(ATTRIBUTES)) < 0.5
    return caption({name: getattr(scene, name) for name, kept in zip(ATTRIBUTES, keep, strict=True) if kept})


def parse_caption(text: str) -> dict[str, str]:
    """Return the attributes that a caption names; the inverse of `caption`.

    Raises:
        ValueError: `text` is not a caption of this world.
    """
    words = set(text.split())
    named = {name: value for name, values in ATTRIBUTES.items() for value in values if value in words}
    if caption(named) != text:
        raise ValueError(f"{text!r} is not a caption of the small world (example: 'a red circle on a grey background')")
    return named


def all_captions() -> list[str]:
    """Return the 525 captions of the world in a fixed order."""
    choices = [[None, *values] for values in ATTRIBUTES.values()]
    return [
        caption({name: value for name, value in zip(ATTRIBUTES, combination, strict=True) if value})
        for combination in itertools.product(*choices)
    ]


def object_mask(shape: str, half_extent: float, centres: np.ndarray) -> np.ndarray:
    """Return the anti-aliased coverage of one shape, [N, 64, 64] in [0, 1], at `centres` [N, 2] in pixels (x, y).

    The coverage is 1/2 - d, clipped, with the signed distance d of the shape (negative inside): a one-pixel edge.
    """
    pixel = np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5
    x = pixel[None, None, :] - centres[:, 0, None, None].astype(np.float32)
    y = pixel[None, :, None] - centres[:, 1, None, None].astype(np.float32)
    r = np.float32(half_extent)
    if shape == "circle":
        distance = np.sqrt(x * x + y * y) - r
    elif shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - 0.9 * r
    elif shape == "triangle":  # equilateral, apex up, centred on its centroid, vertices 1.2 r from it
        distance = np.maximum(y, np.abs(x) * np.float32(3**0.5 / 2) - y * np.float32(0.5)) - 0.6 * r
    else:  # cross: two bars of half width 0.35 r
        across = np.maximum(np.abs(x) - r, np.abs(y) - 0.35 * r)
        distance = np.minimum(across, np.maximum(np.abs(y) - r, np.abs(x) - 0.35 * r))
    return np.clip(0.5 - distance, 0.0, 1.0)


def rgb(colour: tuple[int, int, int]) -> np.ndarray:
    """Convert a colour to an image of one pixel: [3, 1, 1] in [0, 1]."""
    return np.array(colour)[:, None, None] / 255


def render(scenes: list[Scene]) -> np.ndarray:
    """Render scenes: [N, 3, 64, 64], float32 in [0, 1]."""
    images = np.empty((len(scenes), 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for image, scene in zip(images, scenes, strict=True):
        mask = object_mask(scene.shape, SIZES[scene.size], np.array([scene.centre]))
        ground, paint = rgb(BACKGROUNDS[scene.background]), rgb(COLOURS[scene.colour])
        image[:] = ground + mask * (paint - ground)
    return images
