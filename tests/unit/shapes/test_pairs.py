"""Two objects: captions, renderer and oracle agree, and GenEval's categories find their mistakes."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpdmd.data.prompt_files import read_prompts
from dpdmd.shapes import world
from dpdmd.shapes.categories import CATEGORIES, OF_TWO, accuracy_by_category, category
from dpdmd.shapes.measure import measure_images
from dpdmd.shapes.oracle import mean_metrics, read_images
from dpdmd.shapes.pair_oracle import measure_pair_prompt, read_pairs
from dpdmd.shapes.pairs import (
    ATTRIBUTES,
    GAP,
    HALF_EXTENT,
    RELATIONS,
    TOGETHER,
    Pair,
    all_captions,
    binding_caption,
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
def test_other_texts_are_an_error(text):
    with pytest.raises(ValueError, match="is not a caption of"):
        parse_caption(text)


def test_half_of_the_images_are_those_of_the_world():
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


def test_objects_have_the_named_relation_a_gap_and_a_margin():
    for pair in sample_pairs(5, 300):
        axis, sign = RELATIONS[pair.relation]
        first, second = np.array(pair.centres)
        assert sign * (first - second)[axis] >= 2 * HALF_EXTENT + GAP - 1e-9
        assert min(first.min(), second.min()) >= HALF_EXTENT + world.MARGIN
        assert max(first.max(), second.max()) <= world.IMAGE_SIZE - HALF_EXTENT - world.MARGIN
    left, below = RELATIONS["left of"], RELATIONS["below"]
    assert left == (0, -1) and below == (1, 1)  # x points right, y down


def test_captions_are_true_and_leave_attributes_open():
    pairs = sample_pairs(3, 400)
    named = [parse_caption(sample_caption(pair, 3, index)) for index, pair in enumerate(pairs)]
    for pair, values in zip(pairs, named, strict=True):
        assert {**values, "relation": pair.relation}.items() <= pair.named.items()
        assert values["relation"] in (TOGETHER, pair.relation)
    assert abs(np.mean([len(values) - 1 for values in named]) / 4 - 0.7) < 0.05
    assert abs(np.mean([values["relation"] != TOGETHER for values in named]) - 0.7) < 0.07
    assert all(parse_caption(binding_caption(pair)) == {**pair.named, "relation": TOGETHER} for pair in pairs)


def matches(pairs: list[Pair], named: list[dict[str, str]]) -> np.ndarray:
    """Return whether the oracle reads in each pair what is named."""
    reading = read_pairs(render(pairs))
    shown = [reading.shows(0, values) | reading.shows(1, values) for values in named]
    return np.array([rows[index] for index, rows in enumerate(shown)])


def test_the_oracle_reads_every_rendered_pair():
    pairs = sample_pairs(7, 400)
    assert read_pairs(render(pairs)).recognised.all()
    assert matches(pairs, [pair.named for pair in pairs]).all()


def test_both_orders_of_the_objects_are_right():
    """An image has two true captions, one per order of its objects, each with its own relation."""
    pair = RED_CIRCLE_LEFT_OF_BLUE_SQUARE
    captions = [
        "a red circle left of a blue square",
        "a blue square right of a red circle",
        "a blue square and a circle",
    ]
    false = ["a red circle right of a blue square", "a blue circle left of a red square", "a red circle above a square"]
    image = render([pair])
    assert [measure_pair_prompt(text, read_pairs(image)).accuracy for text in captions + false] == [1.0] * 3 + [0.0] * 3


def test_a_caption_of_two_equal_objects_needs_both():
    both = replace(RED_CIRCLE_LEFT_OF_BLUE_SQUARE, colours=("red", "red"), shapes=("circle", "circle"))
    images = render([both, RED_CIRCLE_LEFT_OF_BLUE_SQUARE])
    assert measure_pair_prompt("a red circle and a red circle", read_pairs(images)).accuracy == 0.5


def test_objects_on_a_diagonal_have_two_relations():
    pair = replace(RED_CIRCLE_LEFT_OF_BLUE_SQUARE, centres=((20.0, 20.0), (48.0, 44.0)))
    reading = read_pairs(render([pair]))
    shown = {r: bool(reading.shows(0, {"relation": r, "colour": "red"})[0]) for r in RELATIONS}
    assert shown == {"left of": True, "right of": False, "above": True, "below": False}


def test_other_images_than_of_two_objects_are_not_recognised():
    pair = RED_CIRCLE_LEFT_OF_BLUE_SQUARE
    single = world.render([world.sample_scene(2, index) for index in range(50)])
    touching = render([replace(pair, centres=((24.0, 30.0), (42.0, 34.0)))])
    three = np.where(np.arange(64) < 40, render([replace(pair, centres=((16.0, 16.0), (16.0, 48.0)))]), render([pair]))
    flat = np.broadcast_to(single[:1, :, :1, :1], single[:1].shape)
    noise = np.random.default_rng(0).random((20, 3, 64, 64), dtype=np.float32)
    for images in (single, touching, three, flat, noise):
        assert not read_pairs(images).recognised.any()
    assert not read_images(render([pair])).recognised.any()  # nor are two objects recognised as one


def test_metrics_by_hand():
    """Three of four are right; of the open attributes, the background is measured."""
    pair = RED_CIRCLE_LEFT_OF_BLUE_SQUARE
    others = [replace(pair, background="black"), replace(pair, colours=("blue", "red")), pair]
    metrics = measure_images("a red circle and a blue square", render([pair, *others]))
    assert (metrics.accuracy, metrics.unrecognised, metrics.spread) == (0.75, 0.0, None)
    assert metrics.coverage == {"background": 0.5}
    assert metrics.entropy["background"] == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(4))


def test_prompts_of_one_object_are_measured_by_their_own_oracle():
    scene = Scene("red", "circle", "grey", "small", (0.3, 0.3))
    one = measure_images("a red circle", render([scene]))
    two = measure_images("a red circle and a blue square", render([RED_CIRCLE_LEFT_OF_BLUE_SQUARE]))
    assert (one.accuracy, two.accuracy, one.spread) == (1.0, 1.0, 0.0)
    assert mean_metrics([one, two]).spread == 0.0 and mean_metrics([two]).spread is None
    with pytest.raises(ValueError, match="names one object"):
        measure_pair_prompt("a red circle", read_pairs(render([RED_CIRCLE_LEFT_OF_BLUE_SQUARE])))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a circle and a square", "two_objects"),
        ("a red circle and a square", "two_objects"),
        ("a red circle and a blue square", "colour_binding"),
        ("a red circle and a blue circle", "two_objects"),  # still true if the colours are swapped
        ("a red shape and a blue shape", "two_objects"),
        ("a shape above a cross", "position"),
        ("a red circle left of a blue square", "position"),
        ("a red circle", "colour_shape"),
    ],
)
def test_categories_depend_on_what_a_caption_names(text, expected):
    assert category(text) == expected


def true_pair(named: dict[str, str]) -> Pair:
    """Return an image that the caption is true of."""
    pair = next(pair for pair in sample_pairs(9, 100) if named["relation"] in (TOGETHER, pair.relation))
    values = {**pair.named, **named}
    colours, shapes = (values["colour"], values["second_colour"]), (values["shape"], values["second_shape"])
    return replace(pair, colours=colours, shapes=shapes)


def swapped(pair: Pair, name: str) -> Pair:
    """Return an image with the mistake that the category must find."""
    if name == "position":
        return replace(pair, centres=pair.centres[::-1])
    if name == "colour_binding":
        return replace(pair, colours=pair.colours[::-1])
    return replace(pair, colours=pair.colours[:1] * 2, shapes=pair.shapes[:1] * 2)  # the same object twice


@pytest.mark.parametrize("name", OF_TWO)
def test_each_category_finds_its_mistake(name):
    """Accuracy is 1 on true images of the file's prompts, and 0 on images with the mistake."""
    prompts = [prompt for prompt in GENEVAL if category(prompt) == name]
    pairs = [true_pair(parse_caption(prompt)) for prompt in prompts]
    right = [measure_images(prompt, render([pair])) for prompt, pair in zip(prompts, pairs, strict=True)]
    wrong = [measure_images(prompt, render([swapped(pair, name)])) for prompt, pair in zip(prompts, pairs, strict=True)]
    assert [accuracy_by_category(prompts, metrics)[name].mean for metrics in (right, wrong)] == [1.0, 0.0]


def test_the_file_has_sixteen_prompts_of_each_category():
    """Its prompts of two objects are not in the training prompts."""
    categories = ("single_attribute", "colour_shape", "two_attributes", *OF_TWO)
    assert Counter(map(category, GENEVAL)) == dict.fromkeys(categories, 16)
    assert set(categories) < set(CATEGORIES)
    assert not set(GENEVAL[48:]) & set(read_prompts(DATA / "pairs_train.txt"))
