"""What a measuring program left behind: each metric's mean, and its value prompt by prompt for paired tests."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpdmd.utils.error_lines import shorten_error

PER_IMAGE = "per_image.csv"  # beside summary.json


@dataclass(frozen=True)
class Figure:
    """One metric of one model.

    Attributes:
        mean: over prompts; None if nothing was scored.
        by_prompt: prompt -> mean over its pictures.
    """

    mean: float | None
    by_prompt: dict[str, float]


def read_figures(path: Path) -> dict[str, Figure]:
    """Metric -> figure, of a root program's summary.json or of what `dpdmd.shapes.measure --out` wrote on one model.

    Raises:
        ValueError: cannot be read, or is neither.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if "metrics" in values:
            return _of_program(values["metrics"], path.with_name(PER_IMAGE))
        (details,) = values.values()
        return _of_world(details["prompts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: neither a summary.json nor the figures of one model of the small world ({shorten_error(error)})"
        ) from None


def _of_program(metrics: Mapping[str, Any], per_image: Path) -> dict[str, Figure]:
    """Its means as they stand; values prompt by prompt from the pictures' rows, an empty cell being missing."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in metrics}
    with per_image.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name in metrics:
                if row[name]:
                    found[name].setdefault(f"{row['prompt_index']} {row['prompt']}", []).append(float(row[name]))
    return {
        name: Figure(summary["mean"], {prompt: float(np.mean(values)) for prompt, values in found[name].items()})
        for name, summary in metrics.items()
    }


def _of_world(prompts: Mapping[str, Mapping[str, Any]]) -> dict[str, Figure]:
    """Means over prompts as `oracle.summarise` has them: what leaves nothing open has no coverage and no entropy."""
    found: dict[str, dict[str, float]] = {}
    for prompt, entry in prompts.items():
        for name, value in _numbers(entry):
            found.setdefault(name, {})[prompt] = value
    return {name: Figure(float(np.mean(list(values.values()))), values) for name, values in found.items()}


def _numbers(entry: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in entry.items():
        if isinstance(value, dict):  # one number an open attribute
            if value:
                yield name, float(np.mean(list(value.values())))
        elif name == "category":
            yield f"accuracy/{value}", entry["accuracy"]
        elif value is not None:
            yield name, value
