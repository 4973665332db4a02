"""The linear model of benchmarks/screening.py: exact on exact data, and its errors by hand."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from screening import best_settings, distances, find_factors, fit

from dpdmd.compare.sweep_file import read_sweep

ROOT = Path(__file__).parents[2]
TEACHER = {"accuracy": 0.958, "entropy": 0.846}


def test_changes_and_seed_offsets_are_told_apart():
    """Three factors, all settings, with the seeds 7 and 9 in turns: y = 1 + 0.5 a - 0.25 b + 0 c, +- 0.1 by seed."""
    turned = np.array(list(product((0.0, 1.0), repeat=3)))
    seeds = [7, 9, 9, 7, 9, 7, 7, 9]
    values = [
        1 + 0.5 * a - 0.25 * b + (0.1 if seed == 9 else -0.1) for (a, b, _), seed in zip(turned, seeds, strict=True)
    ]
    found = fit(turned, seeds, values)
    assert found.at_base == pytest.approx(1)
    np.testing.assert_allclose(found.changes, [0.5, -0.25, 0], atol=1e-12)
    np.testing.assert_allclose(found.errors, 0, atol=1e-12)
    np.testing.assert_allclose(found.predict(np.array([[1.0, 1.0, 0.0]])), [1.25])


def test_the_error_of_a_change_is_that_of_two_means():
    """One factor and one seed: the pooled standard error of the difference of two means."""
    values = [1.0, 3.0, 2.0, 6.0, 4.0, 5.0]
    found = fit(np.array([[0], [0], [0], [1], [1], [1]], float), [0] * 6, values)
    pooled = (np.var(values[:3]) * 3 + np.var(values[3:]) * 3) / 4
    assert (found.changes[0], found.errors[0]) == pytest.approx((3.0, np.sqrt(pooled * 2 / 3)))
    with pytest.raises(ValueError, match="2 rows do not determine 2 coefficients"):
        fit(np.array([[0.0], [1.0]]), [0, 0], [1.0, 2.0])


def test_the_factors_of_the_search_are_orthogonal(monkeypatch):
    """Twelve factors, each at both levels in 12 of the 24 rows; flags that change together are one factor."""
    monkeypatch.chdir(ROOT)
    sweep = read_sweep(Path("scripts/sweeps/recipe_tiny.yaml"))
    rows = {name: row.resolved for name, row in sweep.configurations.items() if name.startswith("screen_")}
    factors = find_factors(rows, sweep.configurations["base"].resolved)
    turned = np.array([[row[f.flags[0]] != f.base[0] for f in factors] for row in rows.values()]) * 2 - 1
    assert turned.shape == (24, 12) and (turned.T @ turned == 24 * np.eye(12)).all()
    assert {f.flags for f in factors} > {("fake_rollout_reuse", "per_train_fake_num"), ("lr_scheduler", "ema_decay")}
    with pytest.raises(ValueError, match="k_anchor has 3 values"):
        find_factors({"a": {"k_anchor": 1}, "b": {"k_anchor": 2}}, {"k_anchor": 3})


def test_the_distances_to_the_goals():
    """Half a point below the teacher is one unit of L1, and 2% of the entropy another; L2 rewards accuracy above it."""
    found = distances(np.array([0.953, 0.968]), np.array([0.846, 0.846 * 0.98]), TEACHER)
    assert found["L1"] == pytest.approx([1, 1])
    assert found["L2"] == pytest.approx([1, -2 + 2])


def test_the_best_setting_turns_what_helps():
    rows = {str(index): {"a": a, "b": b} for index, (a, b) in enumerate(product((0, 1), repeat=2))}
    factors = find_factors(rows, {"a": 0, "b": 0})
    turned = np.array([[row["a"], row["b"]] for row in rows.values()] * 2, float)
    noise = np.array([1, -1, -1, 1, -1, 1, 1, -1]) * 1e-4
    effects = {
        "accuracy": fit(turned, [0] * 8, 0.938 + 0.02 * turned[:, 0] + noise),
        "entropy": fit(turned, [0] * 8, 0.846 - 0.1 * turned[:, 1] + noise),
        "spread": fit(turned, [0] * 8, 0.8 + noise),
    }
    lines = best_settings(effects, factors, TEACHER)
    assert len(lines) == 4 and all(re.search(r": a 0 -> 1 \(accuracy 0.958, entropy 0.846, ", line) for line in lines)
