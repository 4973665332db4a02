"""From scores to what is reported: means over prompts, over seeds of training, and differences between models.

Over prompts intervals are bootstrapped. Over seeds they are Student's t: three values have ten different resamples, all
between the smallest and the largest, so that a bootstrap interval of them is far too narrow; t's is as wide as three
values deserve.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpdmd.utils.rng import numpy_generator

NUM_RESAMPLES = 2000
NUM_FLIPS = 10_000
COVERAGE = 0.95
ROUNDING = 1e-12  # below it a difference of scores is none


@dataclass(frozen=True)
class Summary:
    """One metric of one model.

    Attributes:
        mean: over prompts of the prompt's mean; None if nothing was scored.
        low, high: 95% percentile bootstrap interval over prompts; None with fewer than two prompts.
        num_prompts, num_scored, num_missing: prompts with a score; images with and without one.
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

    A prompt counts once, however many of its images were scored. The resampling is seeded, and pairs are sorted
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


@dataclass(frozen=True)
class SeedMean:
    """Mean over seeds of training, with its 95% t interval: mean +- margin; no margin with one seed."""

    mean: float
    margin: float | None
    num_seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.margin is None else f" ± {self.margin:.3f}")


@dataclass(frozen=True)
class Difference:
    """One model minus another, paired.

    Attributes:
        p_seeds: two-sided paired t test over seeds: would other trainings differ too? None with one seed, and where
            all seeds differ by the same: so small a spread of so few is luck, and t has no bound.
        p_prompts: two-sided sign-flip test over prompts of the differences' means over seeds: would these models differ
            on other prompts too? None with fewer than two prompts.
    """

    over_seeds: SeedMean
    p_seeds: float | None
    p_prompts: float | None


def mean_over_seeds(values: Sequence[float]) -> SeedMean:
    """Mean and 95% t interval of one value a seed.

    Raises:
        ValueError: no value.
    """
    if not len(values):
        raise ValueError("a mean needs at least one value")
    if len(values) == 1:
        return SeedMean(float(values[0]), None, 1)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return SeedMean(float(np.mean(values)), t_quantile(COVERAGE, len(values) - 1) * error, len(values))


def paired_difference(by_seed: Sequence[float], by_prompt: Sequence[float], seed: int = 0) -> Difference:
    """Tests of paired differences: one a seed of training, and one a prompt (its mean over seeds)."""
    over_seeds = mean_over_seeds(by_seed)
    p_seeds = None
    if len(by_seed) > 1:
        error = float(np.std(by_seed, ddof=1)) / math.sqrt(len(by_seed))
        if error > ROUNDING * np.abs(by_seed).max():
            p_seeds = 1 - t_central(abs(over_seeds.mean) / error, len(by_seed) - 1)
        elif abs(over_seeds.mean) <= ROUNDING:
            p_seeds = 1.0
    return Difference(over_seeds, p_seeds, _sign_flip_p(np.asarray(by_prompt), seed) if len(by_prompt) > 1 else None)


def _sign_flip_p(differences: np.ndarray, seed: int) -> float:
    """Share of random signs that give a mean as far from 0; the signs that are there count as one of them."""
    random = numpy_generator(seed, "sign flips")
    observed = abs(differences.sum())
    slack = ROUNDING * np.abs(differences).sum()  # sums of the same numbers in another order
    as_far = 0
    for _ in range(0, NUM_FLIPS, 100):  # in parts: 10,000 prompts x 10,000 signs would fill the memory
        signs = random.integers(2, size=(100, len(differences))) * 2 - 1
        as_far += int((np.abs(signs @ differences) >= observed - slack).sum())
    return (as_far + 1) / (NUM_FLIPS + 1)


def t_central(t: float, freedom: int) -> float:
    """P(|T| <= t) of Student's t with a whole number of degrees of freedom, in closed form (Abramowitz & Stegun 26.7.3,
    26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * power / (power + 1)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(inside, 1.0)  # its sum rounds: without this a p value could fall below 0


def t_quantile(coverage: float, freedom: int) -> float:
    """The t with P(|T| <= t) = coverage, by bisection of the angle atan(t / sqrt(freedom))."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        inside = t_central(math.sqrt(freedom) * math.tan(middle), freedom) < coverage
        low, high = (middle, high) if inside else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
