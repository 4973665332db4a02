"""Plots: points are where the values are, and smoothing and thinning keep what they should."""

import re

import numpy as np

from dpdmd.report import plots
from dpdmd.report.scores import Score
from dpdmd.report.style import run_style


def test_points_of_many_runs_stay_near_their_step():
    """Eight runs at one step are within 1/50 of the axis."""
    curves = [plots.Curve(f"run{n}", run_style(n), np.array([0.0, 100]), *[np.array([0.1, 0.2])] * 3) for n in range(8)]
    svg = plots.plot_score("s", curves, [])
    ends = [np.array(re.findall(r"[ML] (\S+) (\S+)", _group(svg, f"s-mean-run{n}")), dtype=float)[:2] for n in range(8)]
    starts, width = [end[0, 0] for end in ends], ends[0][1, 0] - ends[0][0, 0]
    assert 0 < max(starts) - min(starts) <= 1.01 * plots.MAX_DODGE * width


def test_what_is_drawn_lies_where_the_values_are():
    """A line is an affine map of the data, the same map as for the intervals and the teacher."""
    steps, values = np.array([0.0, 6, 12, 30]), np.array([0.1, 0.7, 0.4, 0.9])
    curve = plots.Curve("run0", run_style(0), steps, values, values - 0.05, values + 0.1)
    svg = plots.plot_score("score0", [curve], [Score(0.3, 0.2, 0.5)])
    drawn = np.array(re.findall(r"[ML] (\S+) (\S+)", _group(svg, "score0-mean-run0")), dtype=float)[:4]
    across, down = np.polyfit(steps, drawn[:, 0], 1), np.polyfit(values, drawn[:, 1], 1)
    np.testing.assert_allclose(np.polyval(across, steps), drawn[:, 0], atol=1e-3)
    np.testing.assert_allclose(np.polyval(down, values), drawn[:, 1], atol=1e-3)
    assert across[0] > 0 > down[0]
    bars = np.array(re.findall(r"[ML] (\S+) (\S+)", _group(svg, "score0-bars-run0")), dtype=float)
    np.testing.assert_allclose(bars[:, 1].reshape(4, 2)[:, 0], np.polyval(down, values - 0.05), atol=1e-3)
    np.testing.assert_allclose(bars[:, 1].reshape(4, 2)[:, 1], np.polyval(down, values + 0.1), atol=1e-3)
    teacher = np.array(re.findall(r"[ML] (\S+) (\S+)", _group(svg, "score0-mean-teacher")), dtype=float)
    np.testing.assert_allclose(teacher[:, 1], np.polyval(down, 0.3), atol=1e-3)


def _group(svg: str, name: str) -> str:
    return svg.split(f'<g id="{name}">')[1].split("</g>")[0]


def test_a_logarithmic_axis_is_labelled_with_numbers():
    values = np.geomspace(1e-3, 1, 50)
    svg = plots.plot_training("loss", [plots.Curve("run0", run_style(0), np.arange(50.0), values)])
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert {"0.001", "0.01", "0.1", "1"} <= set(texts) and not any("$" in text for text in texts)


def test_smoothing_and_thinning_of_curves():
    """The running mean is the mean of the known neighbours, and thinning keeps every extreme value."""
    values = np.random.default_rng(0).normal(size=1001)
    values[[5, 400]] = np.nan
    mean = plots.running_mean(values, 7)
    for index in (0, 2, 5, 399, 1000):
        np.testing.assert_allclose(mean[index], np.nanmean(values[max(0, index - 3) : index + 4]))
    np.testing.assert_array_equal(plots.running_mean(values, 1), values)
    steps = np.arange(1001)
    places, kept = plots.envelope(steps, values)
    assert len(kept) <= plots.MAX_POINTS and np.nanmax(values) in kept and np.nanmin(values) in kept
    np.testing.assert_array_equal(values[places], kept)
    assert plots.envelope(steps[:9], values[:9])[1] is not None and len(plots.envelope(steps[:9], values[:9])[1]) == 9
