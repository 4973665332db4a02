"""What a run's measures say about its health: each beside its healthy range, and the faults that they look like.

The ranges lie between those of good runs and of runs that were broken on purpose, all on the small world
(benchmarks/broken_runs.py). Most of them compare a run with its own beginning or with its teacher, so that they say
something about other models too.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

MIN_UPDATES = 20  # of the student; fewer say nothing
FIRST_UPDATES = 10  # of the student: what is broken from the start shows in them
DIVERSITY_RATIO = "Ratio of diversity and DMD gradient"
SATURATED = "Saturated latents"
SPREAD = "Latents’ deviation over the teacher’s"
GROWTH = "Growth of the DMD gradient"
FAKE_GROWTH = "Growth of the fake loss"


@dataclass(frozen=True)
class Measure:
    """One measure of a run.

    Attributes:
        value: None if the run does not record it.
        low, high: the healthy range.
    """

    name: str
    value: float | None
    low: float
    high: float

    @property
    def healthy(self) -> bool:
        return self.value is None or self.low <= self.value <= self.high

    @property
    def range(self) -> str:
        """Return the healthy range in words."""
        if self.low == -math.inf:
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high == math.inf else f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Health:
    """The measures of a run, and what they look like: one sentence for each fault."""

    measures: tuple[Measure, ...]
    faults: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.faults) or "no sign of a fault"


def judge(records: Sequence[Mapping[str, Any]]) -> Health | None:
    """Judge a run by its records (metrics.jsonl); None if it has fewer than MIN_UPDATES of the student.

    A value is a median over the last quarter of the updates, "growth" its ratio to that of the first eighth.
    """
    student = [record for record in records if record["turn"] == "student"]
    fake = [record for record in records if record["turn"] == "fake"]
    if len(student) < MIN_UPDATES:
        return None
    last = student[-(len(student) // 4) :]
    std = _median(last, "latent_std_real")
    measures = (
        Measure(DIVERSITY_RATIO, _ratio(_median(last, "div_gradient_norm"), _dmd(last)), 0.01, math.inf),
        Measure(SATURATED, _median(last, "latent_saturated"), -math.inf, 0.02),
        Measure("Shift of the latents’ mean", _shift(last, std), -math.inf, 0.1),
        Measure(SPREAD, _ratio(_median(last, "latent_std"), std), 0.68, 1.1),
        Measure(GROWTH, _growth(student, "dmd_gradient_norm"), -math.inf, 1.2),
        Measure(FAKE_GROWTH, _growth(fake, "loss_fake"), -math.inf, 2.0),
        Measure("Cosine of real and fake errors", _median(last, "score_error_cosine"), 0.2, 0.7),
        Measure("Anchor error", _median(last, "anchor_error"), -math.inf, 0.5),
    )
    return Health(measures, tuple(_faults(student[:FIRST_UPDATES], {each.name: each for each in measures})))


def _faults(first: Sequence[Mapping[str, Any]], measures: Mapping[str, Measure]) -> list[str]:
    unhealthy = {name for name, measure in measures.items() if not measure.healthy}
    faults = []
    if DIVERSITY_RATIO in unhealthy:
        faults.append("The diversity loss has next to no weight, as with --div_weight 0: the first step learns by DMD.")
    saturated, anchor = _median(first, "latent_saturated") or 0, _median(first, "anchor_error") or 0
    if saturated > measures[SATURATED].high or anchor > 1:
        faults.append(
            f"The first {FIRST_UPDATES} student updates threw the student away from what the teacher knows, as a "
            "learning rate does that is far too large (--lr_student, --lr_fake)."
        )
    elif FAKE_GROWTH in unhealthy:
        faults.append(
            "The fake score does not follow the student: its loss grows. Check that it learns (--lr_fake, "
            "--per_train_fake_num)."
        )
    elif GROWTH in unhealthy and SPREAD in unhealthy:
        faults.append(
            "The DMD gradient grows while the samples leave what the teacher knows, as with an inverted sign of the "
            "DMD gradient. The doctor checks it."
        )
    if unhealthy and not faults:
        faults.append(f"No known fault, but out of the healthy range: {', '.join(sorted(unhealthy))}.")
    return faults


def _median(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [record[name] for record in records if isinstance(record.get(name), (int, float))]
    return median(values) if values else None


def _dmd(records: Sequence[Mapping[str, Any]]) -> float | None:
    return _median(records, "dmd_gradient_norm")


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def _shift(records: Sequence[Mapping[str, Any]], std: float | None) -> float | None:
    mean, real = _median(records, "latent_mean"), _median(records, "latent_mean_real")
    return None if mean is None or real is None else _ratio(abs(mean - real), std)


def _growth(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    last, first = records[-(len(records) // 4) :], records[: max(len(records) // 8, 1)]
    return _ratio(_median(last, name), _median(first, name))
