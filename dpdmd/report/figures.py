"""The report's figures: SVG text to stand inside the page, in the page's own font.

matplotlib, since its SVG is 10 to 30 kB a figure, opens at once and prints as sharp as text; a page that carries a
plotting library in JavaScript has 4 MB of it before the first curve. No pyplot: no global state inside a training run.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dpdmd.report.scores import Score
from dpdmd.report.style import FAINT, INK, SOFT, TEACHER_COLOUR, TEACHER_STYLE, Style

MAX_POINTS = 300  # of a curve: more would not be seen, and 6,000 updates would make megabytes
SMOOTHING = 20  # a curve's running mean spans one part in so many of its updates
DODGE = 0.012  # of the axis between two runs' points at one step, so that their intervals can be told apart
MAX_DODGE = 0.02  # of the axis between the first run's and the last's: their step must not be mistaken
RAW_INK = 0.5  # of all runs' raw curves together, or the means would drown in them
LOG_FROM = 30  # largest over smallest value from which an axis is logarithmic
SETTINGS = {
    "svg.fonttype": "none",  # text stays text: the page's font, searchable, read aloud
    "svg.hashsalt": "dpdmd",  # the same figure, the same bytes
    "font.size": 8,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 8,
    "axes.formatter.limits": (-3, 5),
    "axes.formatter.useoffset": False,
    "grid.color": "#eef0f3",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Curve:
    """One run's values over steps; NaN where there is none.

    Attributes:
        key: of the run, in the ids of what is drawn, so that the page can fade it.
        low, high: of the 95% intervals; without them none are drawn.
    """

    key: str
    style: Style
    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None


@dataclass(frozen=True)
class Path:
    """One run in the plane: (diversity, preference) at each evaluation."""

    key: str
    style: Style
    points: Sequence[tuple[Score, Score]]


def numbers(values: Sequence[float | None]) -> np.ndarray:
    """fp64, None as NaN."""
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over up to `window` neighbours, centred; NaN are passed over, and the ends have fewer neighbours."""
    known, half = np.isfinite(values), window // 2
    # Convolved, not summed up from the start: one wild value must not cost the later ones their digits.
    sums, counts = (
        np.convolve(part, np.ones(2 * half + 1))[half : half + len(values)]
        for part in (np.where(known, values, 0), known)
    )
    with np.errstate(invalid="ignore"):
        return sums / counts


def envelope(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same curve in few points: the least and the greatest value of each of MAX_POINTS stretches."""
    if len(values) <= MAX_POINTS:
        return steps, values
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(values)), MAX_POINTS // 2):
        known = stretch[np.isfinite(values[stretch])]
        if len(known):
            kept += sorted({int(known[values[known].argmin()]), int(known[values[known].argmax()])})
    return steps[kept], values[kept]


def training_figure(name: str, curves: Sequence[Curve]) -> str:
    """A training figure of all runs: each update faintly, and its running mean."""

    def draw(axes: Axes) -> None:
        means = []
        for curve in curves:
            mean = running_mean(curve.values, max(1, len(curve.values) // SMOOTHING))
            means.append(mean)
            colour = curve.style.colour
            ink = min(0.25, RAW_INK / len(curves))
            raw = axes.plot(*envelope(curve.steps, curve.values), color=colour, alpha=ink, linewidth=0.7, zorder=1)
            places = np.unique(np.linspace(0, len(mean) - 1, min(len(mean), MAX_POINTS)).astype(int))
            line = axes.plot(curve.steps[places], mean[places], color=colour, linestyle=curve.style.dash)
            _name(raw, "raw", curve.key), _name(line, "mean", curve.key)
        _limit(axes, np.concatenate([curve.values for curve in curves]), np.concatenate(means))
        _label_steps(axes)

    return _svg(name, (3.6, 2.3), draw)


def _limit(axes: Axes, values: np.ndarray, means: np.ndarray) -> None:
    """Room for the means and for all but the wildest hundredth of the values; logarithmic where they span much."""
    values, means = values[np.isfinite(values)], means[np.isfinite(means)]
    if not len(values):
        return
    low, high = np.quantile(values, [0.01, 0.99])
    low, high = min(low, means.min()), max(high, means.max())
    if low > 0 and high / low > LOG_FROM:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
    elif high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def score_figure(name: str, curves: Sequence[Curve], teachers: Sequence[Score]) -> str:
    """A score of all runs over their evaluations with intervals; teachers as dashed lines with theirs."""

    def draw(axes: Axes) -> None:
        for teacher in teachers:
            if teacher.mean is not None:
                line = axes.axhline(teacher.mean, color=TEACHER_COLOUR, linestyle=TEACHER_STYLE.dash, linewidth=1.2)
                _name([line], "mean", "teacher")
            if teacher.low is not None:
                band = axes.axhspan(teacher.low, teacher.high, color=TEACHER_COLOUR, alpha=0.08, linewidth=0)
                _name([band], "interval", "teacher")
        steps = np.concatenate([curve.steps for curve in curves] or [np.zeros(1)])
        apart = min(DODGE, MAX_DODGE / max(1, len(curves) - 1)) * (np.ptp(steps) or 1.0)
        for index, curve in enumerate(curves):
            colour, places = curve.style.colour, curve.steps + apart * (index - (len(curves) - 1) / 2)
            bars = axes.vlines(places, curve.low, curve.high, color=colour, alpha=0.45, linewidth=1.1)
            line = axes.plot(
                places, curve.values, color=colour, linestyle=curve.style.dash, marker=curve.style.mark, ms=4
            )
            _name([bars], "bars", curve.key), _name(line, "mean", curve.key)
        _label_steps(axes)

    return _svg(name, (3.6, 2.3), draw)


def plane_figure(
    name: str, labels: tuple[str, str], paths: Sequence[Path], teachers: Sequence[tuple[Score, Score]]
) -> str:
    """Diversity to the right, preference upwards: each run's path over its evaluations, the teacher a star."""

    def draw(axes: Axes) -> None:
        for x, y in teachers:
            _cross(axes, x, y, TEACHER_COLOUR, "teacher", strong=True)
            star = axes.plot(x.mean, y.mean, "*", color=TEACHER_COLOUR, ms=12, mec="white", mew=0.8, zorder=4)
            _name(star, "point", "teacher")
        for path in paths:
            _draw_path(axes, path)
        axes.set_xlabel(f"{labels[0]} →", loc="right")
        axes.set_ylabel(f"{labels[1]} →", loc="top")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.margins(0.08)

    return _svg(name, (4.9, 3.9), draw)


def _draw_path(axes: Axes, path: Path) -> None:
    colour, last = path.style.colour, len(path.points) - 1
    xs, ys = ([point[axis].mean for point in path.points] for axis in (0, 1))
    line = axes.plot(xs, ys, color=colour, linestyle=path.style.dash, linewidth=1.3, alpha=0.8, zorder=2)
    _name(line, "path", path.key)
    for index, (x, y) in enumerate(path.points):
        _cross(axes, x, y, colour, path.key, strong=index == last)
        fill = colour if index == last else "white"
        size = 7 if index == last else 4.5
        mark = axes.plot(x.mean, y.mean, path.style.mark, mfc=fill, mec=colour, ms=size, mew=1.2, zorder=3)
        _name(mark, f"point{index}", path.key)


def _cross(axes: Axes, x: Score, y: Score, colour: str, key: str, *, strong: bool) -> None:
    """Both intervals of a point."""
    look = {"color": colour, "alpha": 0.6 if strong else 0.18, "linewidth": 1.0 if strong else 0.7, "zorder": 1}
    if x.low is not None:
        _name(axes.plot([x.low, x.high], [y.mean, y.mean], **look), "across", key)
    if y.low is not None:
        _name(axes.plot([x.mean, x.mean], [y.low, y.high], **look), "upward", key)


def _label_steps(axes: Axes) -> None:
    axes.set_xlabel("step", loc="right", labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="x", visible=False)


def _name(artists: Sequence, what: str, key: str) -> None:
    """Ids end with the run's key: the page fades a run by them."""
    for artist in artists:
        artist.set_gid(f"{what}-{key}")


def _svg(name: str, inches: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    """Draw, and write as SVG for inside a page: no prologue, size left to the page, ids that are this figure's own."""
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=inches)
        width, height = inches
        # The same margins in all of a size, in inches, so that their axes stand in line; and no layout to compute.
        figure.subplots_adjust(left=0.45 / width, right=1 - 0.06 / width, bottom=0.36 / height, top=1 - 0.08 / height)
        draw(figure.add_subplot())
        out = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, metadata=no_metadata)
    return inline(out.getvalue(), name)


def inline(svg: str, name: str) -> str:
    """matplotlib's SVG file as an element of a page.

    Ids are prefixed with `name` (a page has each id once) and numbered where the figure repeats one. Whoever cannot
    see it is told by the page, from the table beside it.
    """
    svg = svg[svg.index("<svg") :]
    opening, _, body = svg.partition(">")
    box = re.search(r'viewBox="[^"]*"', opening)
    seen: dict[str, int] = {}

    def own(match: re.Match) -> str:
        seen[match[1]] = seen.get(match[1], 0) + 1
        number = f"{seen[match[1]]}." if seen[match[1]] > 1 else ""
        return f' id="{name}-{number}{match[1]}"'

    body = re.sub(r' id="([^"]*)"', own, body)
    body = re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{name}-\1"', body)
    return f'<svg {box[0] if box else ""} aria-hidden="true" focusable="false">{body}'
