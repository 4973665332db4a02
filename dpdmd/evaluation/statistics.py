"""From per-picture scores to what is reported: means over prompts with bootstrap intervals, missing ones counted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpdmd.rng import numpy_generator

NUM_RESAMPLES = 2000
COVERAGE = 0.95


@dataclass(frozen=True)
class Summary:
    """One metric of one model.

    Attributes:
        mean: over prompts of the prompt's mean; None if nothing was scored.
        low, high: 95% percentile bootstrap interval over prompts; None with fewer than two prompts.
        num_prompts, num_scored, num_missing: prompts with a score; pictures with and without one.
    """

    mean: float | None
    low: float | None
    high: float | None
    num_prompts: int
    num_scored: int
    num_missing: int

    def __str__(self) -> str:
        if self.mean is None:
            return f"missing ({self.num_missing})"
        interval = "" if self.low is None else f" [{self.low:.4f}, {self.high:.4f}]"
        return f"{self.mean:.4f}{interval}" + (f" ({self.num_missing} missing)" if self.num_missing else "")


def summarise(scores: Iterable[tuple[int, float | None]], seed: int = 0) -> Summary:
    """Summary of (prompt index, score or None) pairs, in any order.

    A prompt counts once, however many of its pictures were scored. The resampling is seeded, and pairs are sorted
    first, so the same scores give the same interval whoever computed them.
    """
    by_prompt: dict[int, list[float]] = {}
    missing = 0
    for prompt, value in scores:
        if value is None:
            missing += 1
        else:
            by_prompt.setdefault(prompt, []).append(value)
    means = np.array([np.mean(sorted(by_prompt[prompt])) for prompt in sorted(by_prompt)])
    scored = sum(map(len, by_prompt.values()))
    if not len(means):
        return Summary(None, None, None, 0, 0, missing)
    low, high = _bootstrap_interval(means, seed) if len(means) > 1 else (None, None)
    return Summary(float(means.mean()), low, high, len(means), scored, missing)


def _bootstrap_interval(means: np.ndarray, seed: int) -> tuple[float, float]:
    draws = numpy_generator(seed, "bootstrap").integers(len(means), size=(NUM_RESAMPLES, len(means)))
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(means[draws].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def mean_rank(rows: Sequence[Mapping[str, float | None]], groups: Sequence[Sequence[str]]) -> list[float]:
    """Mean rank of each row, 1 is best: over groups, of the mean over a group's metrics of the rank in that metric.

    Every metric is one where higher is better. Equal values share their mean rank; a missing value ranks last.
    Metrics that no row has are passed over, and groups without any metric too.

    Raises:
        ValueError: no metric at all.
    """
    ranks = []
    for group in groups:
        present = [name for name in group if any(row.get(name) is not None for row in rows)]
        if present:
            ranks.append(np.mean([_ranks([row.get(name) for row in rows]) for name in present], axis=0))
    if not ranks:
        raise ValueError("no metric to rank by")
    return np.mean(ranks, axis=0).tolist()


def _ranks(values: Sequence[float | None]) -> np.ndarray:
    filled = np.array([-np.inf if value is None else value for value in values])
    better = (filled[None, :] > filled[:, None]).sum(axis=1)
    equal = (filled[None, :] == filled[:, None]).sum(axis=1)
    return better + (equal + 1) / 2
