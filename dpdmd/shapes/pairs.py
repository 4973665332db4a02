"""The small world with a second object: images of one or two objects, and captions that name their relation.

A superset of `dpdmd.shapes.world` for GenEval's categories with two objects (Ghosh et al., arXiv 2310.11513): both
objects, the colour of each, and their relative position. Half of the images are those of `dpdmd.shapes.world`. The
other half shows two objects of one size on one background, separated by a gap along x or y.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from dpdmd.shapes import world
from dpdmd.shapes.world import BACKGROUNDS, COLOURS, IMAGE_SIZE, MARGIN, SHAPES, Scene
from dpdmd.utils.rng import numpy_generator

HALF_EXTENT = 10.0  # pixels, of each object of a pair
GAP = 8.0  # pixels between the two objects along the axis that separates them: one cell of the latent
TOGETHER = "and"  # both objects are there, and their positions are not named
# Relation -> (axis, sign) of the first object's centre minus the second's; y points down.
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}

# An object of a pair is named by its colour and shape. A caption with a "relation" names two objects.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    **world.ATTRIBUTES,
    "relation": (TOGETHER, *RELATIONS),
    "second_colour": world.ATTRIBUTES["colour"],
    "second_shape": world.ATTRIBUTES["shape"],
}
NAMED = 0.7  # probability of each colour and shape of a pair, and of its relation, to be named in a caption


@dataclass(frozen=True)
class Pair:
    """An image of two objects; `relation` is true of their `centres`, [2, 2] pixels (x, y)."""

    colours: tuple[str, str]
    shapes: tuple[str, str]
    relation: str
    centres: tuple[tuple[float, float], tuple[float, float]]
    background: str

    @property
    def named(self) -> dict[str, str]:
        """Return everything that a caption can name."""
        (colour, second_colour), (shape, second_shape) = self.colours, self.shapes
        return {
            "colour": colour,
            "shape": shape,
            "second_colour": second_colour,
            "second_shape": second_shape,
            "relation": self.relation,
        }


def sample_scene(seed: int, index: int) -> Scene | Pair:
    """Return image number `index` of the world `seed`: one object if `index` is even, else two."""
    if index % 2 == 0:
        return world.sample_scene(seed, index)
    random = numpy_generator(seed, "pair", index)
    colours, shapes = ([str(random.choice(list(values))) for _ in range(2)] for values in (COLOURS, SHAPES))
    relation = str(random.choice(list(RELATIONS)))
    axis, sign = RELATIONS[relation]
    low, high = HALF_EXTENT + MARGIN, IMAGE_SIZE - HALF_EXTENT - MARGIN
    centres = random.uniform(low, high, size=(2, 2))
    along = np.sort(random.uniform(0, high - low - 2 * HALF_EXTENT - GAP, size=2)) + low
    centres[:, axis] = along + np.array([0, 2 * HALF_EXTENT + GAP])
    if sign > 0:
        centres[:, axis] = centres[::-1, axis]
    return Pair(
        colours=(colours[0], colours[1]),
        shapes=(shapes[0], shapes[1]),
        relation=relation,
        centres=tuple(tuple(map(float, centre)) for centre in centres),
        background=str(random.choice(list(BACKGROUNDS))),
    )


def caption(named: dict[str, str]) -> str:
    """Return the caption that names exactly `named`, a subset of `ATTRIBUTES`: "a red circle left of a blue shape".

    Without a relation, it is a caption of one object.
    """
    if "relation" not in named:
        return world.caption(named)
    first = {name: value for name, value in named.items() if name in ("colour", "shape")}
    second = {name.removeprefix("second_"): value for name, value in named.items() if name.startswith("second_")}
    return f"{world.caption(first)} {named['relation']} {world.caption(second)}"


def sample_caption(scene: Scene | Pair, seed: int, index: int) -> str:
    """Return a true caption of `scene` that names a random subset of its attributes."""
    if isinstance(scene, Scene):
        return world.sample_caption(scene, seed, index)
    keep = numpy_generator(seed, "pair caption", index).random(len(scene.named)) < NAMED
    named = {name: value for (name, value), kept in zip(scene.named.items(), keep, strict=True) if kept}
    return caption({"relation": TOGETHER, **named})


def binding_caption(pair: Pair) -> str:
    """Return the caption that names all of a pair but where its objects are: "a red circle and a blue square"."""
    return caption({**pair.named, "relation": TOGETHER})


def parse_caption(text: str) -> dict[str, str]:
    """Return what a caption names; the inverse of `caption`.

    Raises:
        ValueError: `text` is not a caption of one or two objects.
    """
    for relation in ATTRIBUTES["relation"]:
        phrases = text.split(f" {relation} ")
        if len(phrases) == 2:
            words = {name: set(phrase.split()) for name, phrase in zip(("", "second_"), phrases, strict=True)}
            named = {"relation": relation} | {
                prefix + name: value
                for prefix, found in words.items()
                for name in ("colour", "shape")
                for value in world.ATTRIBUTES[name]
                if value in found
            }
            if caption(named) != text:
                raise ValueError(f"{text!r} is not a caption of two objects (example: 'a red circle above a square')")
            return named
    return world.parse_caption(text)


def all_captions() -> list[str]:
    """Return every caption in a fixed order: 525 of one object, then 35 x 5 x 35 of two."""
    objects = [
        {name: value for name, value in (("colour", colour), ("shape", shape)) if value}
        for colour, shape in itertools.product([None, *COLOURS], [None, *SHAPES])
    ]
    pairs = itertools.product(objects, ATTRIBUTES["relation"], objects)
    return world.all_captions() + [
        caption({**first, "relation": relation, **{f"second_{name}": value for name, value in second.items()}})
        for first, relation, second in pairs
    ]


def render(scenes: list[Scene | Pair]) -> np.ndarray:
    """Render scenes: [N, 3, 64, 64], float32 in [0, 1]."""
    return np.stack([_render(s) if isinstance(s, Pair) else world.render([s])[0] for s in scenes])


def _render(pair: Pair) -> np.ndarray:
    image = np.broadcast_to(world.rgb(BACKGROUNDS[pair.background]), (3, IMAGE_SIZE, IMAGE_SIZE))
    for colour, shape, centre in zip(pair.colours, pair.shapes, pair.centres, strict=True):
        mask = world.object_mask(shape, HALF_EXTENT, np.array([centre]))
        image = image + mask * (world.rgb(COLOURS[colour]) - image)
    return image.astype(np.float32)
