"""Summaries, Student's t and paired tests, against tables, closed forms and simulations."""

import itertools
import math

import numpy as np
import pytest

from dpdmd.evaluation import statistics
from dpdmd.evaluation.statistics import (
    NUM_RESAMPLES,
    mean_over_seeds,
    mean_rank,
    paired_difference,
    summarise,
    t_central,
    t_quantile,
)
from dpdmd.utils.rng import numpy_generator


@pytest.mark.parametrize(
    ("freedom", "at_95", "at_99"),  # any printed table of Student's t, two-sided
    [
        (1, 12.706, 63.657),
        (2, 4.303, 9.925),
        (3, 3.182, 5.841),
        (4, 2.776, 4.604),
        (7, 2.365, 3.499),
        (30, 2.042, 2.750),
    ],
)
def test_t_is_that_of_the_tables(freedom, at_95, at_99):
    assert t_quantile(0.95, freedom) == pytest.approx(at_95, abs=6e-4)
    assert t_quantile(0.99, freedom) == pytest.approx(at_99, abs=6e-4)
    assert t_central(t_quantile(0.6, freedom), freedom) == pytest.approx(0.6, abs=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 5.0])
def test_t_in_closed_form(t):
    assert t_central(t, 1) == pytest.approx(2 / math.pi * math.atan(t))
    assert t_central(t, 2) == pytest.approx(t / math.sqrt(2 + t * t))
    assert t_central(t, 2001) == pytest.approx(math.erf(t / math.sqrt(2)), abs=1e-3)  # nearly normal


@pytest.mark.parametrize("freedom", [*range(1, 60), 1000, 10_001])
def test_a_probability_is_one_whatever_rounding_does(freedom):
    """Summed in floating point, P came out a bit above 1 for 20 degrees of freedom, and p below 0."""
    found = [t_central(t, freedom) for t in (0.0, 0.5, 1.0, 2.0, 5.0, 50.0, 1000.0, 1e12)]
    assert np.diff(found).min() > -1e-12 and found[0] == 0 and max(found) <= 1
    for coverage in (0.5, 0.8, 0.95, 0.999, 0.9999):
        assert t_central(t_quantile(coverage, freedom), freedom) == pytest.approx(coverage, abs=1e-12)


@pytest.mark.parametrize("freedom", [1, 2, 3, 8, 9, 40])
def test_t_is_the_integral_of_its_density(freedom):
    """With x = sqrt(n) tan(a) the density is proportional to cos(a)^(n - 1): Simpson's rule, far from the series."""

    def integral(angle):
        places = np.linspace(0, angle, 4001)
        weights = np.r_[1, np.tile([4, 2], 1999), 4, 1]
        return (weights * np.cos(places) ** (freedom - 1)).sum() * angle / 12_000

    for t in (0.1, 1.0, 4.0, 30.0):
        share = integral(math.atan(t / math.sqrt(freedom))) / integral(math.pi / 2)
        assert t_central(t, freedom) == pytest.approx(share, abs=1e-9)


def test_mean_over_seeds_by_hand():
    three = mean_over_seeds([1.0, 2.0, 3.0])
    assert three.mean == 2 and three.margin == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert str(three) == "2.000 ± 2.484"
    one = mean_over_seeds([0.5])
    assert (one.mean, one.margin, str(one)) == (0.5, None, "0.500")
    with pytest.raises(ValueError, match="at least one"):
        mean_over_seeds([])


def test_the_interval_covers_what_it_says_with_three_values():
    """2,000 times three normal values: t covers 95% (a standard deviation of 0.5%); a bootstrap of three far less."""
    random = np.random.default_rng(0)
    samples = random.normal(size=(2000, 3))
    covered = np.mean([abs(m.mean) <= m.margin for m in map(mean_over_seeds, samples)])
    assert covered == pytest.approx(0.95, abs=0.02)
    resamples = np.array(list(itertools.product(range(3), repeat=3)))
    low, high = np.quantile(samples[:, resamples].mean(axis=2), [0.025, 0.975], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.85


def test_paired_tests_by_hand():
    """t = 2 / (1 / sqrt 3) on two degrees of freedom, and all 2^4 signs of four prompts: 2 of 16 are as far."""
    result = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])
    t = 2 * math.sqrt(3)
    assert result.p_seeds == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert result.p_prompts == pytest.approx(2 / 16, abs=0.015)
    assert result == paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0])


def test_paired_tests_at_their_ends():
    same = paired_difference([0.0, 0.0], [0.0, 0.0, 0.0])
    assert (same.over_seeds.mean, same.p_seeds, same.p_prompts) == (0, 1, 1)
    assert paired_difference([0.5, 0.5], [0.5]).p_seeds is None
    assert paired_difference([0.1 + 0.2 - 0.3] * 3, []).p_seeds == 1
    alone = paired_difference([0.5], [])
    assert (alone.over_seeds.margin, alone.p_seeds, alone.p_prompts) == (None, None, None)


def test_the_sign_flip_test_is_calibrated(monkeypatch):
    """Without a difference p is below .2 in a fifth of 300 cases (a standard deviation of 2.3%); with one, hardly ever
    above."""
    monkeypatch.setattr(statistics, "NUM_FLIPS", 500)
    random = np.random.default_rng(1)
    null = [paired_difference([0.0], random.normal(size=12)).p_prompts for _ in range(300)]
    assert np.mean(np.array(null) < 0.2) == pytest.approx(0.2, abs=0.07)
    shifted = [paired_difference([0.0], random.normal(1, 1, size=12)).p_prompts for _ in range(50)]
    assert np.mean(np.array(shifted) < 0.2) > 0.9


def test_summaries_count_prompts_once_and_missing_apart():
    """A prompt's mean counts once; order does not matter; the interval is of the prompts' means."""
    scores = [(0, 1.0), (0, 3.0), (1, 5.0), (1, None), (2, None)]
    summary = summarise(scores)
    assert (summary.mean, summary.num_prompts, summary.num_scored, summary.num_missing) == (3.5, 2, 3, 2)
    assert summarise(scores[::-1]) == summary
    assert 2.0 <= summary.low <= summary.mean <= summary.high <= 5.0
    wide = summarise([(i, float(i)) for i in range(100)])
    margin = 1.96 * 2.887  # standard error of the mean of 0..99
    assert (wide.low, wide.high) == pytest.approx((49.5 - margin, 49.5 + margin), abs=0.7)
    assert summarise([(0, None)]).mean is None and summarise([(0, 1.0)]).low is None


@pytest.mark.parametrize("count", [2, 7, 301])
def test_a_bootstrap_in_parts_is_that_of_one_draw(count):
    means = np.random.default_rng(0).random(count)
    draws = numpy_generator(3, "bootstrap").integers(count, size=(NUM_RESAMPLES, count))
    low, high = np.quantile(means[draws].mean(axis=1), [0.025, 0.975])
    found = summarise(enumerate(means.tolist()), seed=3)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_mean_rank():
    """Two groups count the same however many metrics they have; equal values share their rank."""
    rows = [{"a": 1.0, "b": 3.0, "c": 1.0}, {"a": 2.0, "b": 2.0, "c": 1.0}, {"a": 3.0, "b": None, "c": 0.0}]
    assert mean_rank(rows, [["a"], ["b", "c"]]) == pytest.approx([(3 + 1.25) / 2, (2 + 1.75) / 2, (1 + 3) / 2])
