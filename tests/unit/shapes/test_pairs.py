"""Two objects: captions, renderer and oracle agree, and GenEval's kinds of prompts ask what they say."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpdmd.data.prompts import read_prompts
from dpdmd.shapes import world
from dpdmd.shapes.categories import CATEGORIES, OF_TWO, category, following
from dpdmd.shapes.measure import measure_images
from dpdmd.shapes.oracle import read_images, summarise
from dpdmd.shapes.pair_oracle import measure_pair_prompt, read_pairs
from dpdmd.shapes.pairs import (
    ATTRIBUTES,
    GAP,
    HALF_EXTENT,
    RELATIONS,
    TOGETHER,
    Pair,
    all_captions,
    caption,
    parse_caption,
    render,
    sample_caption,
    sample_scene,
)
from dpdmd.shapes.world import Scene

DATA = Path(__file__).parents[3] / "data"
GENEVAL = read_prompts(DATA / "pairs_geneval.txt")
RED_CIRCLE_LEFT_OF_BLUE_SQUARE = Pair(
    colours=("red", "blue"),
    shapes=("circle", "square"),
    relation="left of",
    centres=((20.0, 30.0), (48.0, 34.0)),
    background="grey",
)


def sample_pairs(seed: int, count: int) -> list[Pair]:
    return [sample_scene(seed, 2 * index + 1) for index in range(count)]


def test_every_caption_parses_back():
    captions = all_captions()
    assert len(captions) == len(set(captions)) == 525 + 35 * 5 * 35
    assert all(caption(parse_caption(text)) == text for text in captions)
    assert captions[:525] == world.all_captions()


@pytest.mark.parametrize(
    "text",
    [
        "a red circle and",
        "a red circle near a blue square",
        "a small circle and a square",
        "a circle left a square",
        "a circle and a square and a cross",
        "a circle and a square on a grey background",
    ],
)
def test_what_is_no_caption_is_refused(text):
    with pytest.raises(ValueError, match="is no caption of"):
        parse_caption(text)


def test_half_of_the_images_are_the_worlds_own():
    scenes = [sample_scene(4, index) for index in range(10)]
    assert [type(scene) for scene in scenes] == [Scene, Pair] * 5
    assert scenes[::2] == [world.sample_scene(4, index) for index in range(0, 10, 2)]
    assert np.array_equal(render(scenes)[::2], world.render(scenes[::2]))


def test_pairs_derive_from_the_seed_and_fill_the_world():
    pairs = sample_pairs(0, 1200)
    assert pairs[:3] == sample_pairs(0, 3) != sample_pairs(1, 3)
    for name, values in ATTRIBUTES.items():
        if name in pairs[0].named and name != "relation":
            share = [np.mean([pair.named[name] == value for pair in pairs]) for value in values]
            assert np.allclose(share, 1 / len(values), atol=0.06), name
    assert np.allclose([np.mean([pair.relation == r for pair in pairs]) for r in RELATIONS], 1 / 4, atol=0.06)


def test_objects_lie_where_the_relation_says_apart_and_inside():
    for pair in sample_pairs(5, 300):
        axis, sign = RELATIONS[pair.relation]
        first, second = np.array(pair.centres)
        assert sign * (first - second)[axis] >= 2 * HALF_EXTENT + GAP - 1e-9
        assert min(first.min(), second.min()) >= HALF_EXTENT + world.MARGIN
        assert max(first.max(), second.max()) <= world.IMAGE_SIZE - HALF_EXTENT - world.MARGIN
    left, below = RELATIONS["left of"], RELATIONS["below"]
    assert left == (0, -1) and below == (1, 1)  # x grows to the right, y downwards


def test_captions_are_true_and_leave_things_open():
    pairs = sample_pairs(3, 400)
    named = [parse_caption(sample_caption(pair, 3, index)) for index, pair in enumerate(pairs)]
    for pair, said in zip(pairs, named, strict=True):
        assert {**said, "relation": pair.relation}.items() <= pair.named.items()
        assert said["relation"] in (TOGETHER, pair.relation)
    assert abs(np.mean([len(said) - 1 for said in named]) / 4 - 0.7) < 0.05
    assert abs(np.mean([said["relation"] != TOGETHER for said in named]) - 0.7) < 0.07


def right(pairs: list[Pair], said: list[dict[str, str]]) -> np.ndarray:
    reading = read_pairs(render(pairs))
    shown = [reading.shows(0, named) | reading.shows(1, named) for named in said]
    return np.array([rows[index] for index, rows in enumerate(shown)])


def test_the_oracle_reads_every_rendered_pair():
    pairs = sample_pairs(7, 400)
    assert read_pairs(render(pairs)).recognised.all()
    assert right(pairs, [pair.named for pair in pairs]).all()


def test_the_order_of_the_two_is_the_captions():
    """The oracle cannot know which is called the first: both orders are true, each with its own relation."""
    pair = RED_CIRCLE_LEFT_OF_BLUE_SQUARE
    captions = [
        "a red circle left of a blue square",
        "a blue square right of a red circle",
        "a blue square and a circle",
    ]
    false = ["a red circle right of a blue square", "a blue circle left of a red square", "a red circle above a square"]
    image = render([pair])
    assert [measure_pair_prompt(text, read_pairs(image)).accuracy for text in captions + false] == [1.0] * 3 + [0.0] * 3


def test_a_pair_of_equals_needs_two_of_them():
    both = replace(RED_CIRCLE_LEFT_OF_BLUE_SQUARE, colours=("red", "red"), shapes=("circle", "circle"))
    images = render([both, RED_CIRCLE_LEFT_OF_BLUE_SQUARE])
    assert measure_pair_prompt("a red circle and a red circle", read_pairs(images)).accuracy == 0.5


def test_objects_on_the_diagonal_lie_on_both_sides():
    pair = replace(RED_CIRCLE_LEFT_OF_BLUE_SQUARE, centres=((20.0, 20.0), (48.0, 44.0)))
    reading = read_pairs(render([pair]))
    shown = {r: bool(reading.shows(0, {"relation": r, "colour": "red"})[0]) for r in RELATIONS}
    assert shown == {"left of": True, "right of": False, "above": True, "below": False}


def test_what_is_not_two_objects_is_not_recognised():
    pair = RED_CIRCLE_LEFT_OF_BLUE_SQUARE
    single = world.render([world.sample_scene(2, index) for index in range(50)])
    touching = render([replace(pair, centres=((24.0, 30.0), (42.0, 34.0)))])
    three = np.where(np.arange(64) < 40, render([replace(pair, centres=((16.0, 16.0), (16.0, 48.0)))]), render([pair]))
    flat = np.broadcast_to(single[:1, :, :1, :1], single[:1].shape)
    noise = np.random.default_rng(0).random((20, 3, 64, 64), dtype=np.float32)
    for images in (single, touching, three, flat, noise):
        assert not read_pairs(images).recognised.any()
    assert not read_images(render([pair])).recognised.any()  # nor are two objects one


def test_metrics_by_hand():
    """Three of four right; of what the prompt leaves open, the backgrounds are counted."""
    pair = RED_CIRCLE_LEFT_OF_BLUE_SQUARE
    others = [replace(pair, background="black"), replace(pair, colours=("blue", "red")), pair]
    metrics = measure_images("a red circle and a blue square", render([pair, *others]))
    assert (metrics.accuracy, metrics.unrecognised, metrics.spread) == (0.75, 0.0, None)
    assert metrics.coverage == {"background": 0.5}
    assert metrics.entropy["background"] == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(4))


def test_prompts_of_one_object_keep_their_own_oracle():
    scene = Scene("red", "circle", "grey", "small", (0.3, 0.3))
    one = measure_images("a red circle", render([scene]))
    two = measure_images("a red circle and a blue square", render([RED_CIRCLE_LEFT_OF_BLUE_SQUARE]))
    assert (one.accuracy, two.accuracy, one.spread) == (1.0, 1.0, 0.0)
    assert summarise([one, two]).spread == 0.0 and summarise([two]).spread is None
    with pytest.raises(ValueError, match="names one object"):
        measure_pair_prompt("a red circle", read_pairs(render([RED_CIRCLE_LEFT_OF_BLUE_SQUARE])))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a circle and a square", "two_objects"),
        ("a red circle and a square", "two_objects"),
        ("a red circle and a blue square", "colour_binding"),
        ("a red circle and a blue circle", "two_objects"),  # colours swapped, it is as true
        ("a red shape and a blue shape", "two_objects"),
        ("a shape above a cross", "position"),
        ("a red circle left of a blue square", "position"),
        ("a red circle", "colour_shape"),
    ],
)
def test_categories_go_by_what_a_caption_names(text, kind):
    assert category(text) == kind


def true_pair(named: dict[str, str]) -> Pair:
    """A image that the caption is true of."""
    pair = next(pair for pair in sample_pairs(9, 100) if named["relation"] in (TOGETHER, pair.relation))
    said = {**pair.named, **named}
    colours, shapes = (said["colour"], said["second_colour"]), (said["shape"], said["second_shape"])
    return replace(pair, colours=colours, shapes=shapes)


def swapped(pair: Pair, kind: str) -> Pair:
    """The mistake that a category is there to find."""
    if kind == "position":
        return replace(pair, centres=pair.centres[::-1])
    if kind == "colour_binding":
        return replace(pair, colours=pair.colours[::-1])
    return replace(pair, colours=pair.colours[:1] * 2, shapes=pair.shapes[:1] * 2)  # the same object twice


@pytest.mark.parametrize("kind", OF_TWO)
def test_each_category_finds_its_mistake(kind):
    """True images of the file's prompts follow all of them, and those with the mistake none."""
    prompts = [prompt for prompt in GENEVAL if category(prompt) == kind]
    pairs = [true_pair(parse_caption(prompt)) for prompt in prompts]
    right = [measure_images(prompt, render([pair])) for prompt, pair in zip(prompts, pairs, strict=True)]
    wrong = [measure_images(prompt, render([swapped(pair, kind)])) for prompt, pair in zip(prompts, pairs, strict=True)]
    assert [following(prompts, metrics)[kind].mean for metrics in (right, wrong)] == [1.0, 0.0]


def test_the_file_has_sixteen_prompts_of_each_kind():
    """Those of two objects are none that a student trains with."""
    kinds = ("single_attribute", "colour_shape", "two_attributes", *OF_TWO)
    assert Counter(map(category, GENEVAL)) == dict.fromkeys(kinds, 16)
    assert set(kinds) < set(CATEGORIES)
    assert not set(GENEVAL[48:]) & set(read_prompts(DATA / "pairs_train.txt"))
