"""The small world: captions, renderer and oracle agree with each other, and the metrics match their definitions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpdmd.data.prompt_files import read_prompts
from dpdmd.shapes.categories import OF_ONE, accuracy_by_category, category
from dpdmd.shapes.oracle import PromptMetrics, Reading, mean_metrics, measure_prompt, read_images
from dpdmd.shapes.world import (
    ATTRIBUTES,
    IMAGE_SIZE,
    Scene,
    all_captions,
    caption,
    parse_caption,
    render,
    sample_caption,
    sample_scene,
)


def test_every_caption_parses_back():
    captions = all_captions()
    assert len(captions) == len(set(captions)) == 7 * 5 * 5 * 3
    assert all(caption(parse_caption(text)) == text for text in captions)


@pytest.mark.parametrize("text", ["", "a red", "red circle", "a red blue circle", "a photo of a cat", "a circle red"])
def test_other_texts_are_an_error(text):
    with pytest.raises(ValueError, match="not a caption of the small world"):
        parse_caption(text)


def test_captions_are_true_and_leave_attributes_open():
    scenes = [sample_scene(3, index) for index in range(400)]
    named = [parse_caption(sample_caption(scene, 3, index)) for index, scene in enumerate(scenes)]
    pairs = zip(scenes, named, strict=True)
    assert all(getattr(scene, name) == value for scene, values in pairs for name, value in values.items())
    # 1600 independent coin flips: a standard deviation of 0.0125
    assert abs(np.mean([len(values) for values in named]) / 4 - 0.5) < 0.05


def test_scenes_derive_from_the_seed_and_fill_the_world():
    scenes = [sample_scene(0, index) for index in range(1500)]
    assert (
        scenes[:3] == [sample_scene(0, index) for index in range(3)] != [sample_scene(1, index) for index in range(3)]
    )
    for name, values in ATTRIBUTES.items():
        share = [np.mean([getattr(scene, name) == value for scene in scenes]) for value in values]
        assert np.allclose(share, 1 / len(values), atol=0.05)
    assert np.allclose(np.std([scene.position for scene in scenes], axis=0), 12**-0.5, atol=0.02)


def test_oracle_reads_every_rendered_attribute():
    scenes = [sample_scene(7, index) for index in range(600)]
    reading = read_images(render(scenes))
    assert reading.recognised.all()
    for name, values in ATTRIBUTES.items():
        truth = np.array([values.index(getattr(scene, name)) for scene in scenes])
        assert np.mean(reading.values[name] == truth) >= 0.99
    assert np.abs(reading.position - [scene.position for scene in scenes]).max() < 0.01
    assert np.abs(reading.centre - [scene.centre for scene in scenes]).max() < 0.5


def test_oracle_reads_extreme_positions():
    corners = [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.5, 0.0)]
    scenes = [
        Scene("cyan", shape, "white", size, corner)
        for shape in ATTRIBUTES["shape"]
        for size in ATTRIBUTES["size"]
        for corner in corners
    ]
    reading = read_images(render(scenes))
    assert reading.recognised.all()
    assert [ATTRIBUTES["shape"][index] for index in reading.values["shape"]] == [scene.shape for scene in scenes]


def test_oracle_does_not_recognise_other_images_than_renders():
    images = render([sample_scene(5, index) for index in range(200)])
    blends = (images[:100] + images[100:]) / 2
    two_objects = np.where(np.arange(IMAGE_SIZE) < IMAGE_SIZE // 2, images[:100], images[100:])
    noise = np.random.default_rng(0).random(images[:100].shape, dtype=np.float32)
    flat = np.broadcast_to(images[:100, :, :1, :1], images[:100].shape)
    assert read_images(blends).recognised.mean() <= 0.02
    # two halves may show one whole object on one background, which is a clean render
    assert read_images(two_objects).recognised.mean() <= 0.2
    assert not read_images(noise).recognised.any()
    assert not read_images(flat).recognised.any()


def test_oracle_treats_every_pair_of_colours_alike():
    """Whether a blurred or wider square is recognised does not depend on its colours."""
    scenes = [
        Scene(c, "square", b, "large", (0.5, 0.5)) for c in ATTRIBUTES["colour"] for b in ATTRIBUTES["background"]
    ]
    images = render(scenes)
    for shift in (0, 4, 28):  # smeared over 0, 4 and 28 further columns
        smeared = np.mean([np.roll(images, step, axis=3) for step in range(shift + 1)], axis=0)
        reading = read_images(smeared)
        assert len(set(reading.recognised)) == 1 and reading.recognised[0] == (shift < 28)
        assert np.ptp(reading.error) < 0.03


def test_other_image_sizes_are_an_error():
    with pytest.raises(ValueError, match="64"):
        read_images(np.zeros((1, 3, 32, 32), dtype=np.float32))


def reading_of(scenes: list[Scene], recognised: list[bool] | None = None) -> Reading:
    values = {n: np.array([v.index(getattr(scene, n)) for scene in scenes]) for n, v in ATTRIBUTES.items()}
    flags = np.array(recognised if recognised is not None else [True] * len(scenes))
    centre, position = (np.array([getattr(scene, name) for scene in scenes]) for name in ("centre", "position"))
    return Reading(values, centre, position, flags, np.zeros(len(scenes)))


def test_identical_images_have_no_diversity():
    metrics = measure_prompt("a red circle", reading_of([Scene("red", "circle", "grey", "small", (0.3, 0.3))] * 8))
    assert metrics == PromptMetrics(1.0, 0.0, {"background": 0.25, "size": 0.5}, {"background": 0.0, "size": 0.0}, 0.0)
    assert not any(np.signbit(list(metrics.entropy.values())))  # "-0.000" in a table


def test_metrics_by_hand():
    scenes = [
        Scene("red", "circle", "grey", "small", (0.0, 0.0)),
        Scene("red", "circle", "white", "large", (1.0, 1.0)),
        Scene("blue", "circle", "white", "large", (1.0, 1.0)),
        Scene("red", "circle", "black", "small", (0.0, 0.0)),
    ]
    metrics = measure_prompt("a red circle", reading_of(scenes, [True, True, True, False]))
    assert metrics.accuracy == 0.5 and metrics.unrecognised == 0.25
    assert metrics.coverage == {"background": 0.5, "size": 1.0}
    two_to_one = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert metrics.entropy["background"] == pytest.approx(two_to_one / np.log(4))
    assert metrics.entropy["size"] == pytest.approx(two_to_one / np.log(2))
    assert metrics.spread == pytest.approx(np.std([0, 1, 1]) * 12**0.5)


def test_the_world_itself_measures_one():
    scenes = [sample_scene(11, index) for index in range(3000)]
    metrics = measure_prompt("a shape", reading_of(scenes))
    # 3000 draws: an entropy estimate falls short of 1 by about (values - 1) / 6000
    assert min(metrics.entropy.values()) > 0.99 and set(metrics.coverage.values()) == {1.0}
    assert metrics.spread == pytest.approx(1, abs=0.03) and metrics.accuracy == 1


def test_summary_leaves_closed_prompts_out_of_diversity():
    full = "a small red circle on a grey background"
    scene = Scene("red", "circle", "grey", "small", (0.5, 0.5))
    closed, open_ = measure_prompt(full, reading_of([scene])), measure_prompt("a shape", reading_of([scene]))
    summary = mean_metrics([closed, open_])
    assert summary.entropy == 0 and summary.accuracy == 1 and summary.num_prompts == 2
    assert summary.coverage == pytest.approx(np.mean([1 / len(values) for values in ATTRIBUTES.values()]))


def test_metrics_without_a_recognised_image():
    metrics = measure_prompt("a red circle", reading_of([Scene("red", "circle", "grey", "small", (0.3, 0.3))], [False]))
    assert metrics.accuracy == 0 and metrics.unrecognised == 1 and metrics.entropy["size"] == 0


GENEVAL = read_prompts(Path(__file__).parents[3] / "data" / "shapes_geneval.txt")


def accuracies_of(scenes_of: list[list[Scene]]) -> dict[str, float]:
    """Return the accuracy by category of renders; `scenes_of` has a list of scenes per prompt of GENEVAL."""
    readings = [read_images(render(scenes)) for scenes in scenes_of]
    metrics = [measure_prompt(prompt, reading) for prompt, reading in zip(GENEVAL, readings, strict=True)]
    return {name: summary.mean for name, summary in accuracy_by_category(GENEVAL, metrics).items()}


def true_scenes(prompt: str, index: int) -> list[Scene]:
    return [replace(sample_scene(13, 3 * index + i), **parse_caption(prompt)) for i in range(3)]


def test_accuracy_of_renders_of_the_prompts_is_one_in_every_category():
    accuracies = accuracies_of([true_scenes(prompt, index) for index, prompt in enumerate(GENEVAL)])
    assert accuracies == dict.fromkeys(OF_ONE[1:], 1.0)


def test_accuracy_of_renders_with_a_changed_attribute_is_zero():
    """If one named attribute has another value, every image is wrong, in every category."""

    def swapped(scene: Scene, prompt: str) -> Scene:
        name = list(parse_caption(prompt))[-1]
        values = ATTRIBUTES[name]
        return replace(scene, **{name: values[(values.index(getattr(scene, name)) + 1) % len(values)]})

    scenes = [[swapped(s, prompt) for s in true_scenes(prompt, index)] for index, prompt in enumerate(GENEVAL)]
    assert accuracies_of(scenes) == dict.fromkeys(OF_ONE[1:], 0.0)


def test_a_prompt_counts_once_in_its_category():
    """Its weight does not depend on its number of images."""
    red, blue = (Scene(colour, "circle", "grey", "small", (0.5, 0.5)) for colour in ("red", "blue"))
    prompts = ["a red circle", "a blue circle", "a circle"]
    readings = [reading_of([red, blue]), reading_of([red] * 3), reading_of([blue])]
    metrics = [measure_prompt(*pair) for pair in zip(prompts, readings, strict=True)]
    summaries = accuracy_by_category(prompts, metrics)
    assert {name: (s.mean, s.num_prompts) for name, s in summaries.items()} == {
        "single_attribute": (1.0, 1),
        "colour_shape": (0.25, 2),
    }
    assert (summaries["colour_shape"].low, summaries["colour_shape"].high) == (0.0, 0.5)


def test_categories_depend_on_what_a_caption_names():
    named = ["a shape", "a large shape", "a red circle", "a red shape on a grey background", "a small red cross"]
    assert [category(text) for text in [*named, "a small red cross on a white background"]] == list(OF_ONE)
