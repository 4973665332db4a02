"""Statistics of scores: means over prompts, means over training seeds, and differences between models.

Intervals over prompts are bootstrapped. Intervals over seeds are Student's t, because three values have only ten
different resamples, all between the smallest and the largest value: their bootstrap interval is far too narrow.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpdmd.utils.rng import numpy_generator

NUM_RESAMPLES = 2000
NUM_FLIPS = 10_000
PART = 100  # resamples or flips that are drawn at a time
COVERAGE = 0.95
ROUNDING = 1e-12  # a smaller difference of scores counts as 0


@dataclass(frozen=True)
class Summary:
    """Summary of one metric of one model.

    Attributes:
        mean: mean over prompts of the prompts' means; None if nothing was scored.
        low, high: 95% percentile bootstrap interval over prompts; None with fewer than two prompts.
        num_prompts: prompts with a score.
        num_scored, num_missing: images with a score, and without one.
    """

    mean: float | None
    low: float | None
    high: float | None
    num_prompts: int
    num_scored: int
    num_missing: int

    @property
    def interval(self) -> str:
        """The mean with its interval, to three digits, for a table without missing scores."""
        return f"{self.mean:.3f}" + ("" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]")

    def __str__(self) -> str:
        if self.mean is None:
            return f"missing ({self.num_missing})"
        interval = "" if self.low is None else f" [{self.low:.4f}, {self.high:.4f}]"
        return f"{self.mean:.4f}{interval}" + (f" ({self.num_missing} missing)" if self.num_missing else "")


def summarise(scores: Iterable[tuple[int, float | None]], seed: int = 0) -> Summary:
    """Summarise (prompt index, score or None) pairs, which may come in any order.

    A prompt counts once, however many of its images were scored. The resampling is seeded and the scores are sorted
    first, so the same scores always give the same interval.
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
    random = numpy_generator(seed, "bootstrap")
    resampled = [  # in parts: 10,000 prompts x 2,000 resamples would take 320 MB
        means[random.integers(len(means), size=(PART, len(means)))].mean(axis=1) for _ in range(0, NUM_RESAMPLES, PART)
    ]
    tail = (1 - COVERAGE) / 2
    low, high = np.quantile(np.concatenate(resampled), [tail, 1 - tail])
    return float(low), float(high)


def mean_rank(rows: Sequence[Mapping[str, float | None]], groups: Sequence[Sequence[str]]) -> list[float]:
    """Return the mean rank of each row, 1 is best: ranks are averaged over a group's metrics, then over the groups.

    A higher value is better in every metric. Equal values share their mean rank; a missing value ranks last. Metrics
    that no row has, and groups without a metric, are left out.

    Raises:
        ValueError: there is no metric at all.
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
    """Mean over training seeds with its 95% t interval, mean +- margin; `margin` is None with one seed."""

    mean: float
    margin: float | None
    num_seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.margin is None else f" ± {self.margin:.3f}")


@dataclass(frozen=True)
class Difference:
    """Paired difference of two models.

    Attributes:
        p_seeds: two-sided paired t test over seeds: would other training runs differ too? None with one seed, and if
            all seeds give the same difference, because t is then unbounded.
        p_prompts: two-sided sign-flip test over prompts, on the differences' means over seeds: would these models
            differ on other prompts too? None with fewer than two prompts.
    """

    over_seeds: SeedMean
    p_seeds: float | None
    p_prompts: float | None


def mean_over_seeds(values: Sequence[float]) -> SeedMean:
    """Return the mean and 95% t interval of one value for each seed.

    Raises:
        ValueError: there is no value.
    """
    if not len(values):
        raise ValueError("a mean needs at least one value")
    if len(values) == 1:
        return SeedMean(float(values[0]), None, 1)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return SeedMean(float(np.mean(values)), t_quantile(COVERAGE, len(values) - 1) * error, len(values))


def paired_difference(by_seed: Sequence[float], by_prompt: Sequence[float], seed: int = 0) -> Difference:
    """Test paired differences: one for each training seed, and one for each prompt (its mean over seeds)."""
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
    """Return the share of random signs that give a mean as far from 0; the actual signs count as one draw."""
    random = numpy_generator(seed, "sign flips")
    observed = abs(differences.sum())
    slack = ROUNDING * np.abs(differences).sum()  # a sum's last bits depend on the order of its terms
    as_far = 0
    for _ in range(0, NUM_FLIPS, PART):  # in parts: 10,000 prompts x 10,000 signs would fill the memory
        signs = random.integers(2, size=(PART, len(differences))) * 2 - 1
        as_far += int((np.abs(signs @ differences) >= observed - slack).sum())
    return (as_far + 1) / (NUM_FLIPS + 1)


def t_central(t: float, freedom: int) -> float:
    """Return P(|T| <= t) of Student's t with `freedom` degrees of freedom (Abramowitz & Stegun 26.7.3, 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * power / (power + 1)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(inside, 1.0)  # rounding could give more, and then a p value below 0


def t_quantile(coverage: float, freedom: int) -> float:
    """Return the t with P(|T| <= t) = coverage, by bisection of the angle atan(t / sqrt(freedom))."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        inside = t_central(math.sqrt(freedom) * math.tan(middle), freedom) < coverage
        low, high = (middle, high) if inside else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
