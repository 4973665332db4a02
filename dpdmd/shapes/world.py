"""The small world: what an image can be, what a caption can say, and the renderer that joins the two.

An image shows one object: its colour, shape, size, background and position are independent and uniform. A
caption names some of the first four; what it leaves open is the diversity of that prompt.
"""

import itertools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from dpdmd.utils.rng import numpy_generator

IMAGE_SIZE = 64

# sRGB, chosen far apart: the closest object colour and background are 111 of 441 (white to black) apart.
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
MARGIN = 4.0  # pixels between an object's half extent and the border, so the border shows only background

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "background": tuple(BACKGROUNDS),
    "size": tuple(SIZES),
}


class World(Protocol):
    """What captions, encoders and a teacher are made for: this module, or `dpdmd.shapes.pairs`."""

    ATTRIBUTES: dict[str, tuple[str, ...]]

    def sample_scene(self, seed: int, index: int) -> Any: ...

    def sample_caption(self, scene: Any, seed: int, index: int) -> str: ...

    def parse_caption(self, text: str) -> dict[str, str]: ...

    def all_captions(self) -> list[str]: ...

    def render(self, scenes: list[Any]) -> np.ndarray: ...


@dataclass(frozen=True)
class Scene:
    """One image's attributes; `position` is (x, y) in [0, 1], relative to where an object of that size may lie."""

    colour: str
    shape: str
    background: str
    size: str
    position: tuple[float, float]

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of the object in pixels, (x, y), the image's corner at (0, 0)."""
        low = SIZES[self.size] + MARGIN
        x, y = (low + u * (IMAGE_SIZE - 2 * low) for u in self.position)
        return x, y


def sample_scene(seed: int, index: int) -> Scene:
    """Scene number `index` of the world `seed`: every attribute and the position uniform and independent."""
    random = numpy_generator(seed, "scene", index)
    named = {name: values[random.integers(len(values))] for name, values in ATTRIBUTES.items()}
    return Scene(**named, position=(float(random.random()), float(random.random())))


def caption(named: dict[str, str]) -> str:
    """The caption that names exactly `named`, some of the attributes: "a small red circle on a grey background"."""
    words = ["a", named.get("size"), named.get("colour"), named.get("shape", "shape")]
    if "background" in named:
        words += ["on a", named["background"], "background"]
    return " ".join(word for word in words if word)


def sample_caption(scene: Scene, seed: int, index: int) -> str:
    """A true caption of `scene` that names each attribute with probability 1/2."""
    keep = numpy_generator(seed, "caption", index).random(len(ATTRIBUTES)) < 0.5
    return caption({name: getattr(scene, name) for name, kept in zip(ATTRIBUTES, keep, strict=True) if kept})


def parse_caption(text: str) -> dict[str, str]:
    """The attributes that a caption of this world names; the inverse of `caption`.

    Raises:
        ValueError: `text` is no caption of this world.
    """
    words = set(text.split())
    named = {name: value for name, values in ATTRIBUTES.items() for value in values if value in words}
    if caption(named) != text:
        raise ValueError(f"{text!r} is no caption of the small world (an example: 'a red circle on a grey background')")
    return named


def all_captions() -> list[str]:
    """Every caption of the world, in a fixed order: 525 of them."""
    choices = [[None, *values] for values in ATTRIBUTES.values()]
    return [
        caption({name: value for name, value in zip(ATTRIBUTES, combination, strict=True) if value})
        for combination in itertools.product(*choices)
    ]


def object_mask(shape: str, half_extent: float, centres: np.ndarray) -> np.ndarray:
    """Anti-aliased coverage of one shape, [N, 64, 64] in [0, 1], at `centres` [N, 2] in pixels (x, y).

    Each shape is given by its signed distance d (negative inside); coverage is 1/2 - d, clipped: a one-pixel edge.
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
    """A colour as an image of one pixel: [3, 1, 1] in [0, 1]."""
    return np.array(colour)[:, None, None] / 255


def render(scenes: list[Scene]) -> np.ndarray:
    """Pictures of `scenes`: [N, 3, 64, 64], float32 in [0, 1]."""
    images = np.empty((len(scenes), 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    for image, scene in zip(images, scenes, strict=True):
        mask = object_mask(scene.shape, SIZES[scene.size], np.array([scene.centre]))
        ground, paint = rgb(BACKGROUNDS[scene.background]), rgb(COLOURS[scene.colour])
        image[:] = ground + mask * (paint - ground)
    return images
