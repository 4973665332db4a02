"""Accuracy by category of caption, as GenEval measures it for real models (Ghosh et al., arXiv 2310.11513).

Captions of one object are grouped by the attributes that they name; `colour_shape` tests whether two attributes are
bound to the same object. Captions of two objects have GenEval's categories: are both objects present (`two_objects`),
has each its own colour (`colour_binding`), and is their relative position right (`position`). Counting is missing.
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
    """Return the category of a caption, one of `CATEGORIES`.

    Captions of one object: by the attributes that are named. Captions of two: `position` if a position is named;
    `colour_binding` if two different shapes and two different colours are named, so that a swap would be wrong; else
    `two_objects`.

    Raises:
        ValueError: `prompt` is not a caption of the small world.
    """
    named = parse_caption(prompt)
    if "relation" in named:
        if named["relation"] != TOGETHER:
            return "position"
        differ = [named.get(name) != named.get(f"second_{name}") for name in ("colour", "shape")]
        return "colour_binding" if len(named) == 5 and all(differ) else "two_objects"
    return COLOUR_SHAPE if named.keys() == {"colour", "shape"} else BY_COUNT[len(named)]


def accuracy_by_category(prompts: Sequence[str], metrics: Sequence[PromptMetrics]) -> dict[str, Summary]:
    """Return category -> accuracy with a bootstrap interval over its prompts, for categories with prompts."""
    found = [category(prompt) for prompt in prompts]
    return {
        name: summarise((index, m.accuracy) for index, m in enumerate(metrics) if found[index] == name)
        for name in CATEGORIES
        if name in found
    }
