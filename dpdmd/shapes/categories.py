"""Prompt-following by category of caption, as GenEval has it for real models (Ghosh et al., arXiv 2310.11513).

The small world allows less than GenEval asks. A picture shows one object, so nothing can be counted, and `colour_shape`
asks whether two attributes are bound to the same object, not which of two objects gets which colour. No caption names a
position, so there is none to follow: how much positions vary is `spread` (`dpdmd.shapes.oracle`).
"""

from collections.abc import Sequence

from dpdmd.evaluation.statistics import Summary, summarise
from dpdmd.shapes.oracle import PromptMetrics
from dpdmd.shapes.world import parse_caption

BY_COUNT = ("nothing_named", "single_attribute", "two_attributes", "three_attributes", "all_attributes")
BINDING = "colour_shape"
CATEGORIES = (*BY_COUNT[:2], BINDING, *BY_COUNT[2:])  # in the order of the table


def category(prompt: str) -> str:
    """Which of `CATEGORIES` a caption belongs to: by the attributes it names; colour and shape together are BINDING.

    Raises:
        ValueError: `prompt` is no caption of the small world.
    """
    named = parse_caption(prompt)
    return BINDING if named.keys() == {"colour", "shape"} else BY_COUNT[len(named)]


def following(prompts: Sequence[str], metrics: Sequence[PromptMetrics]) -> dict[str, Summary]:
    """Accuracy of each category that has prompts, with a bootstrap interval over them."""
    of = [category(prompt) for prompt in prompts]
    return {
        name: summarise((index, m.accuracy) for index, m in enumerate(metrics) if of[index] == name)
        for name in CATEGORIES
        if name in of
    }
