"""What the evaluations' figures are: which metric a key of metrics.jsonl names, and a mean with its interval."""

import re
from dataclasses import dataclass

AVERAGE_PREFIX, PREFIX = "eval_ema/", "eval/"  # of the moving average's metrics, and of the student's
_METRIC = re.compile(r"eval/(?P<set>.+)_(?P<kind>div|preference)_(?P<scorer>.+)")
_ASIDE = ("_low", "_high", "_missing", "_teacher")  # what stands beside a metric's mean in its record
_SCORERS = {
    "div_clip": "CLIP diversity",
    "div_dino": "DINO diversity",
    "pickscore": "PickScore",
    "imagereward": "ImageReward",
    "clip_score": "CLIP score",
}
_RESCALED = "_release"  # PickScore / 26, as the authors print it: the same curve, so it is in the tables alone


@dataclass(frozen=True)
class Metric:
    """One score of the evaluations.

    Attributes:
        name: as metrics.jsonl has it.
        diversity: else a preference.
        rescaled: another score of the run times a constant.
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
        rescaled = scorer.endswith(_RESCALED)
        label = _SCORERS.get(scorer.removesuffix(_RESCALED), scorer) + (" / 26" if rescaled else "")
        return cls(name, match["set"], label, diversity, rescaled)


@dataclass(frozen=True)
class Score:
    """A mean with its 95% interval; None where there is none."""

    mean: float | None
    low: float | None = None
    high: float | None = None
    missing: int = 0
