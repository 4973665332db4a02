"""Plot curves as SVG text that stands inside the page and uses the font of the page.

matplotlib is used because its SVG is 10 to 30 kB per plot; a page with a JavaScript plotting library needs 4 MB before
the first curve. pyplot is not used, so a training run gets no global state.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from dpdmd.report.scores import Score
from dpdmd.report.style import PLOT_SETTINGS, TEACHER_COLOUR, TEACHER_STYLE, Style

MAX_POINTS = 300  # per curve: more are not visible, and 6,000 updates would take megabytes
SMOOTHING = 20  # a running mean spans 1/SMOOTHING of a curve's updates
DODGE = 0.012  # of the axis: distance between two runs' points at one step, so that their intervals do not overlap
MAX_DODGE = 0.02  # of the axis: distance between the first and the last run's points, so that their step stays clear
RAW_ALPHA = 0.5  # sum of the opacities of all runs' raw curves, so that the running means stay visible
LOG_RATIO = 30  # largest over smallest value from which an axis is logarithmic


@dataclass(frozen=True)
class Curve:
    """One run's values over steps; NaN if a value is missing.

    Attributes:
        key: of the run, part of the ids in the SVG, so that the page can fade the run.
        low, high: bounds of the 95% intervals; None to draw none.
    """

    key: str
    style: Style
    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class PlanePath:
    """One run in the plane: (diversity, preference) at each evaluation."""

    key: str
    style: Style
    points: Sequence[tuple[Score, Score]]


def as_array(values: Sequence[float | None]) -> np.ndarray:
    """Convert to fp64, None to NaN."""
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean over up to `window` neighbours, centred, without NaN; the ends have fewer neighbours."""
    known, half = np.isfinite(values), window // 2
    # Convolved, not a difference of cumulative sums: one extreme value must not cost the later ones their digits.
    sums, counts = (
        np.convolve(part, np.ones(2 * half + 1))[half : half + len(values)]
        for part in (np.where(known, values, 0), known)
    )
    with np.errstate(invalid="ignore"):
        return sums / counts


def envelope(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a curve to MAX_POINTS points: the smallest and the largest value of each segment."""
    if len(values) <= MAX_POINTS:
        return steps, values
    kept: list[int] = []
    for segment in np.array_split(np.arange(len(values)), MAX_POINTS // 2):
        known = segment[np.isfinite(values[segment])]
        if len(known):
            kept += sorted({int(known[values[known].argmin()]), int(known[values[known].argmax()])})
    return steps[kept], values[kept]


def plot_training(name: str, curves: Sequence[Curve]) -> str:
    """Plot a training metric of all runs: each update faintly, and its running mean."""

    def draw(axes: Axes) -> None:
        means = []
        for curve in curves:
            mean = running_mean(curve.values, max(1, len(curve.values) // SMOOTHING))
            means.append(mean)
            colour, alpha = curve.style.colour, min(0.25, RAW_ALPHA / len(curves))
            raw = axes.plot(*envelope(curve.steps, curve.values), color=colour, alpha=alpha, linewidth=0.7, zorder=1)
            indices = np.unique(np.linspace(0, len(mean) - 1, min(len(mean), MAX_POINTS)).astype(int))
            line = axes.plot(curve.steps[indices], mean[indices], color=colour, linestyle=curve.style.dash)
            _set_ids(raw, "raw", curve.key), _set_ids(line, "mean", curve.key)
        _set_limits(axes, np.concatenate([curve.values for curve in curves]), np.concatenate(means))
        _label_steps(axes)

    return _svg(name, (3.6, 2.3), draw)


def _set_limits(axes: Axes, values: np.ndarray, means: np.ndarray) -> None:
    """Show the means and 98% of the values; logarithmic if the values span a large range."""
    values, means = values[np.isfinite(values)], means[np.isfinite(means)]
    if not len(values):
        return
    low, high = np.quantile(values, [0.01, 0.99])
    low, high = min(low, means.min()), max(high, means.max())
    if low > 0 and high / low > LOG_RATIO:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # matplotlib's own writes formulas
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(low / 1.2, high * 1.2)
    elif high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def plot_score(name: str, curves: Sequence[Curve], teachers: Sequence[Score]) -> str:
    """Plot a score of all runs over their evaluations with intervals; teachers are dashed lines with intervals."""

    def draw(axes: Axes) -> None:
        for teacher in teachers:
            if teacher.mean is not None:
                line = axes.axhline(teacher.mean, color=TEACHER_COLOUR, linestyle=TEACHER_STYLE.dash, linewidth=1.2)
                _set_ids([line], "mean", "teacher")
            if teacher.low is not None:
                band = axes.axhspan(teacher.low, teacher.high, color=TEACHER_COLOUR, alpha=0.08, linewidth=0)
                _set_ids([band], "interval", "teacher")
        steps = np.concatenate([curve.steps for curve in curves] or [np.zeros(1)])
        dodge = min(DODGE, MAX_DODGE / max(1, len(curves) - 1)) * (np.ptp(steps) or 1.0)
        for index, curve in enumerate(curves):
            style, x = curve.style, curve.steps + dodge * (index - (len(curves) - 1) / 2)
            bars = axes.vlines(x, curve.low, curve.high, color=style.colour, alpha=0.45, linewidth=1.1)
            line = axes.plot(x, curve.values, color=style.colour, linestyle=style.dash, marker=style.marker, ms=4)
            _set_ids([bars], "bars", curve.key), _set_ids(line, "mean", curve.key)
        _label_steps(axes)

    return _svg(name, (3.6, 2.3), draw)


def plot_plane(
    name: str, labels: tuple[str, str], paths: Sequence[PlanePath], teachers: Sequence[tuple[Score, Score]]
) -> str:
    """Plot preference (y) against diversity (x): each run is a path over its evaluations, the teacher a star."""

    def draw(axes: Axes) -> None:
        for x, y in teachers:
            _draw_intervals(axes, x, y, TEACHER_COLOUR, "teacher", strong=True)
            star = axes.plot(x.mean, y.mean, "*", color=TEACHER_COLOUR, ms=12, mec="white", mew=0.8, zorder=4)
            _set_ids(star, "point", "teacher")
        for path in paths:
            _draw_path(axes, path)
        axes.set_xlabel(f"{labels[0]} →", loc="right")
        axes.set_ylabel(f"{labels[1]} →", loc="top")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.margins(0.08)

    return _svg(name, (4.9, 3.9), draw)


def _draw_path(axes: Axes, path: PlanePath) -> None:
    colour, last = path.style.colour, len(path.points) - 1
    xs, ys = ([point[axis].mean for point in path.points] for axis in (0, 1))
    line = axes.plot(xs, ys, color=colour, linestyle=path.style.dash, linewidth=1.3, alpha=0.8, zorder=2)
    _set_ids(line, "path", path.key)
    for index, (x, y) in enumerate(path.points):
        _draw_intervals(axes, x, y, colour, path.key, strong=index == last)
        fill, size = (colour, 7) if index == last else ("white", 4.5)
        marker = axes.plot(x.mean, y.mean, path.style.marker, mfc=fill, mec=colour, ms=size, mew=1.2, zorder=3)
        _set_ids(marker, f"point{index}", path.key)


def _draw_intervals(axes: Axes, x: Score, y: Score, colour: str, key: str, *, strong: bool) -> None:
    """Draw both intervals of a point as a cross."""
    options = {"color": colour, "alpha": 0.6 if strong else 0.18, "linewidth": 1.0 if strong else 0.7, "zorder": 1}
    if x.low is not None:
        _set_ids(axes.plot([x.low, x.high], [y.mean, y.mean], **options), "across", key)
    if y.low is not None:
        _set_ids(axes.plot([x.mean, x.mean], [y.low, y.high], **options), "upward", key)


def _label_steps(axes: Axes) -> None:
    axes.set_xlabel("step", loc="right", labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="x", visible=False)


def _set_ids(artists: Sequence, part: str, key: str) -> None:
    """Set ids that end with the key of the run: the page fades a run by this ending."""
    for artist in artists:
        artist.set_gid(f"{part}-{key}")


def _svg(name: str, inches: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """Draw a plot and return it as an SVG element."""
    with matplotlib.rc_context(PLOT_SETTINGS):
        figure = Figure(figsize=inches)
        width, height = inches
        # Fixed margins in inches align the axes of all plots of one size, and no layout has to be computed.
        figure.subplots_adjust(left=0.45 / width, right=1 - 0.06 / width, bottom=0.36 / height, top=1 - 0.08 / height)
        draw(figure.add_subplot())
        out = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    return _inline(out.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """Convert matplotlib's SVG file to an element of a page.

    The prologue is removed, and the page sets the size. Ids get the prefix `name`, since they must be unique in the
    page, and a number if the plot repeats one. Screen readers skip the element: the page has an alternative text.
    """
    svg = svg[svg.index("<svg") :]
    opening, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', opening)
    counts: dict[str, int] = {}

    def unique(match: re.Match) -> str:
        counts[match[1]] = counts.get(match[1], 0) + 1
        number = f"{counts[match[1]]}." if counts[match[1]] > 1 else ""
        return f' id="{name}-{number}{match[1]}"'

    body = re.sub(r' id="([^"]*)"', unique, body)
    body = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{name}-\1"', body)
    return f'<svg {box[0] if box else ""} aria-hidden="true" focusable="false">{body}'
