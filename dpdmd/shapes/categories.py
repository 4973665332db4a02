"""Prompt-following by category of caption, as GenEval has it for real models (Ghosh et al., arXiv 2310.11513).

Captions of one object go by what they name; `colour_shape` asks whether two attributes are bound to the same object.
Those of two ask GenEval's own questions: are both there (`two_objects`), has each its own colour (`colour_binding`),
and does one lie where the caption says from the other (`position`). Only its counting is missing.
"""

from collections.abc import Sequence

from dpdmd.evaluation.statistics import Summary, summarise
from dpdmd.shapes.oracle import PromptMetrics
from dpdmd.shapes.pairs import TOGETHER, parse_caption

BY_COUNT = ("nothing_named", "single_attribute", "two_attributes", "three_attributes", "all_attributes")
COLOUR_SHAPE = "colour_shape"
OF_ONE = (*BY_COUNT[:2], COLOUR_SHAPE, *BY_COUNT[2:])
OF_TWO = ("two_objects", "colour_binding", "position")
CATEGORIES = (*OF_ONE, *OF_TWO)  # in the order of the table


def category(prompt: str) -> str:
    """Which of `CATEGORIES` a caption belongs to.

    Of one object: by the attributes it names. Of two: `position` if it says where one lies; `colour_binding` if it
    names two shapes and their two colours, so that a swap would be wrong; else `two_objects`.

    Raises:
        ValueError: `prompt` is no caption of the small world.
    """
    named = parse_caption(prompt)
    if "relation" in named:
        if named["relation"] != TOGETHER:
            return "position"
        differ = [named.get(name) != named.get(f"second_{name}") for name in ("colour", "shape")]
        return "colour_binding" if len(named) == 5 and all(differ) else "two_objects"
    return COLOUR_SHAPE if named.keys() == {"colour", "shape"} else BY_COUNT[len(named)]


def following(prompts: Sequence[str], metrics: Sequence[PromptMetrics]) -> dict[str, Summary]:
    """Accuracy of each category that has prompts, with a bootstrap interval over them."""
    of = [category(prompt) for prompt in prompts]
    return {
        name: summarise((index, m.accuracy) for index, m in enumerate(metrics) if of[index] == name)
        for name in CATEGORIES
        if name in of
    }
