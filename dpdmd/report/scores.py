"""What the evaluations' figures are: which metric a key of metrics.jsonl names, and a mean with its interval."""

import re
from dataclasses import dataclass

from dpdmd.config.scorer_table import METRIC_LABELS, RESCALED_METRICS

AVERAGE_PREFIX, PREFIX = "eval_ema/", "eval/"  # of the moving average's metrics, and of the student's
_METRIC = re.compile(r"eval/(?P<set>.+)_(?P<kind>div|preference)_(?P<scorer>.+)")
_ASIDE = ("_low", "_high", "_missing", "_teacher")  # what stands beside a metric's mean in its record


@dataclass(frozen=True)
class Metric:
    """One score of the evaluations.

    Attributes:
        name: as metrics.jsonl has it.
        diversity: else a preference.
        rescaled: another score of the run times a constant: the same curve, so only the tables show it.
    """

    name: str
    image_set: str
    label: str
    diversity: bool
    rescaled: bool

    @classmethod
    def of(cls, name: str) -> "Metric | None":
        """Metric of a record's key; None for what is no metric's mean."""
        match = _METRIC.fullmatch(name)
        if match is None or name.endswith(_ASIDE):
            return None
        diversity, scorer = match["kind"] == "div", match["scorer"]
        scorer = f"div_{scorer}" if diversity else scorer
        return cls(name, match["set"], METRIC_LABELS.get(scorer, scorer), diversity, scorer in RESCALED_METRICS)


@dataclass(frozen=True)
class Score:
    """A mean with its 95% interval; None where there is none."""

    mean: float | None
    low: float | None = None
    high: float | None = None
    missing: int = 0
