"""Scores in the evaluations: the metric that a key of metrics.jsonl names, and a mean with its interval."""

import re
from dataclasses import dataclass

from dpdmd.config.scorer_table import METRIC_LABELS, RESCALED_METRICS

EMA_PREFIX, PREFIX = "eval_ema/", "eval/"  # of the metrics of the moving average, and of the student
_METRIC = re.compile(r"eval/(?P<set>.+)_(?P<kind>div|preference)_(?P<scorer>.+)")
_SUFFIXES = ("_low", "_high", "_missing", "_teacher")  # of the values beside a metric's mean in a record


@dataclass(frozen=True)
class Metric:
    """One metric of the evaluations.

    Attributes:
        name: its key in metrics.jsonl.
        diversity: whether it is a diversity; otherwise it is a preference.
        rescaled: whether it is another metric times a constant: the same curve, so only the tables show it.
    """

    name: str
    image_set: str
    label: str
    diversity: bool
    rescaled: bool

    @classmethod
    def of(cls, name: str) -> "Metric | None":
        """Return the metric that a key names; None if the key is not the mean of a metric."""
        match = _METRIC.fullmatch(name)
        if match is None or name.endswith(_SUFFIXES):
            return None
        diversity, scorer = match["kind"] == "div", match["scorer"]
        scorer = f"div_{scorer}" if diversity else scorer
        return cls(name, match["set"], METRIC_LABELS.get(scorer, scorer), diversity, scorer in RESCALED_METRICS)


@dataclass(frozen=True)
class Score:
    """A mean with its 95% interval; None if unknown."""

    mean: float | None
    low: float | None = None
    high: float | None = None
    missing: int = 0
