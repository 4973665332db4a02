"""Read the metrics that a measuring program wrote: each mean, and the values per prompt for paired tests."""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpdmd.sampling.image_folder import PER_IMAGE
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.text_files import reading_long_values


@dataclass(frozen=True)
class MeasuredMetric:
    """One metric of one model.

    Attributes:
        mean: over prompts; None if nothing was scored.
        by_prompt: prompt -> mean over its images.
        num_missing: images without a score.
    """

    mean: float | None
    by_prompt: dict[str, float]
    num_missing: int = 0


def read_metrics(path: Path) -> dict[str, MeasuredMetric]:
    """Read a root program's summary.json, or what `dpdmd.shapes.measure --out` wrote for one model.

    Returns:
        Metric name -> metric.

    Raises:
        ValueError: the file cannot be read or has neither format.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if "metrics" in values:
            return _from_program(values["metrics"], path.with_name(PER_IMAGE))
        (details,) = values.values()
        return _from_oracle(details["prompts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise ValueError(
            f"{path}: neither a summary.json nor the small world's metrics of one model ({shorten_error(error)})"
        ) from None


def _from_program(metrics: Mapping[str, Any], per_image: Path) -> dict[str, MeasuredMetric]:
    """Take the means from summary.json and average per_image.csv by prompt; an empty cell is a missing score."""
    scores: dict[str, dict[str, list[float]]] = {name: {} for name in metrics}
    with reading_long_values(), per_image.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            for name in metrics:
                if row[name] and math.isfinite(float(row[name])):
                    scores[name].setdefault(f"{row['prompt_index']} {row['prompt']}", []).append(float(row[name]))
    return {
        name: MeasuredMetric(
            _mean(summary["mean"]),
            {prompt: float(np.mean(values)) for prompt, values in scores[name].items()},
            summary.get("num_missing", 0),
        )
        for name, summary in metrics.items()
    }


def _mean(value: Any) -> float | None:
    """Return a mean that is a finite number; None for one that is missing or not finite.

    Raises:
        TypeError: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a mean is {value!r}, which is no number")
    return float(value) if math.isfinite(value) else None


def _from_oracle(prompts: Mapping[str, Mapping[str, Any]]) -> dict[str, MeasuredMetric]:
    """Average over prompts as `oracle.mean_metrics`: a prompt with no open attribute has no coverage or entropy."""
    scores: dict[str, dict[str, float]] = {}
    for prompt, entry in prompts.items():
        for name, value in _numbers(entry):
            scores.setdefault(name, {})[prompt] = value
    return {name: MeasuredMetric(float(np.mean(list(values.values()))), values) for name, values in scores.items()}


def _numbers(entry: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Yield (metric name, value) of one prompt's entry."""
    for name, value in entry.items():
        if isinstance(value, dict):  # one number per open attribute
            if value:
                yield name, float(np.mean(list(value.values())))
        elif name == "category":
            yield f"accuracy/{value}", entry["accuracy"]
        elif value is not None and math.isfinite(value):
            yield name, value
