"""Plot a sweep's rows in the plane of two columns: single trainings faintly, means with their intervals."""

import io
import math
from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.textpath import TextPath
from PIL import Image

from dpdmd.compare.sweep import Sweep
from dpdmd.compare.tables import Cell, Table
from dpdmd.evaluation.statistics import SeedMean
from dpdmd.report.style import PLOT_SETTINGS, TEACHER_STYLE, Style, run_style
from dpdmd.utils.image_grid import save_image

WIDTH, HEIGHT, DPI = 5.6, 3.6, 160  # inches without the legend; dots per inch
HANDLE, LINE = 0.5, 0.18  # inches: width of marker and gaps beside a name, and height of a line of names
TALL_LINE = 0.3  # inches: the same beside markers of any size up to LARGEST
MEAN, TRAINING = 7.5, 3.8  # points: side of a square with the area of a mean's marker, and of a training's
LARGEST = 14  # points: the same of the mean's marker of the most expensive row, if areas are costs
AREA = "area of a marker: network calls of a training"


def draw_plane(sweep: Sweep, table: Table, path: Path, calls: Mapping[str, int] | None = None) -> None:
    """Write the plane as PNG; a row without both metrics is left out.

    `calls` is row -> network calls of a training, the area of the row's marker. Other rows have the usual marker.

    The axes show all points. The interval of two or three trainings may reach far beyond them: it then ends in an
    arrowhead at the edge.
    """
    plane, row_styles = sweep.plane, styles(sweep)
    shown = {
        name: (row[plane.x], row[plane.y]) for name, row in table.items() if row[plane.x].mean and row[plane.y].mean
    }
    if not shown:
        return
    labels = {name: _shorten(name) for name in shown}
    columns = max(1, min(len(shown), int(WIDTH / (HANDLE + max(map(_inches, labels.values()))))))
    sides = _sides({name: calls[name] for name in shown if name in calls} if calls else {})
    line, title = (TALL_LINE, LINE) if sides else (LINE, 0)
    height = HEIGHT + line * math.ceil(len(shown) / columns) + title
    with matplotlib.rc_context(PLOT_SETTINGS):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        axes.margins(0.15)
        for name, cells in shown.items():
            _draw_points(axes, labels[name], *cells, row_styles[name], sides.get(name, MEAN))
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
        for name, (x, y) in shown.items():
            _draw_intervals(axes, x.mean, y.mean, row_styles[name].colour)
        axes.set_xlabel(f"{plane.x} →", loc="right")
        axes.set_ylabel(f"{plane.y} →", loc="top")
        layout = {"ncols": columns, "frameon": False, "handletextpad": 0.3, "columnspacing": 1}
        layout["labelspacing"] = line * 72 / PLOT_SETTINGS["font.size"] - 1
        legend = figure.legend(loc="outside lower left", title=AREA if sides else None, alignment="left", **layout)
        legend.get_title().set_fontsize(PLOT_SETTINGS["font.size"])
        png = io.BytesIO()
        figure.savefig(png, format="png")
    save_image(Image.open(png), path)


def styles(sweep: Sweep) -> dict[str, Style]:
    """Return the style of each row: first the trained rows, in the report's order, then the given models.

    The teacher is grey, as in the report: the model named "teacher", else the first model.
    """
    models = [name for name, row in sweep.configurations.items() if row.model is not None]
    grey = "teacher" if "teacher" in models else next(iter(models), None)
    coloured = [name for name in sweep.configurations if name not in models]
    coloured += [name for name in models if name != grey]
    row_styles = {name: run_style(index) for index, name in enumerate(coloured)}
    return {name: row_styles.get(name, TEACHER_STYLE) for name in sweep.configurations}


def _shorten(name: str) -> str:
    """Cut a name to the width of the figure."""
    width = WIDTH - HANDLE
    if _inches(name) <= width:
        return name
    too_long = bisect_right(range(len(name)), width, key=lambda count: _inches(f"{name[:count]}…"))
    return f"{name[: too_long - 1]}…"


def _inches(text: str) -> float:
    """Return the printed width of a text."""
    return TextPath((0, 0), text, size=PLOT_SETTINGS["font.size"]).get_extents().width / 72


def _sides(calls: Mapping[str, int]) -> dict[str, float]:
    """Return the side of each mean's marker: the area is proportional to the calls, and the largest is LARGEST wide."""
    most = max(calls.values(), default=1)
    return {name: LARGEST * math.sqrt(number / most) for name, number in calls.items()}


def _draw_points(axes: Axes, name: str, x: Cell, y: Cell, style: Style, side: float) -> None:
    """Draw the trainings with both values, and their mean."""
    both = [seed for seed in x.by_seed if seed in y.by_seed]
    if len(both) > 1:
        points = ([cell.by_seed[seed] for seed in both] for cell in (x, y))
        size = marker_size(style.marker, TRAINING)
        axes.plot(*points, style.marker, color=style.colour, alpha=0.35, ms=size, mew=0, zorder=2)
    look = {"color": style.colour, "ms": marker_size(style.marker, side), "mec": "white", "label": name}
    axes.plot(x.mean.mean, y.mean.mean, style.marker, zorder=4 - side / LARGEST, **look)  # the small above the large


def marker_size(marker: str, side: float) -> float:
    """Return the matplotlib size at which a marker has the area of a square of `side` points.

    At equal sizes, a star has a quarter of the square's area.
    """
    style = MarkerStyle(marker)
    area = 0.0
    for corners in style.get_path().transformed(style.get_transform()).to_polygons():
        x, y = corners.T
        area += abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2
    return side / math.sqrt(area)


def _draw_intervals(axes: Axes, x: SeedMean, y: SeedMean, colour: str) -> None:
    """Draw both 95% intervals of a mean, cut off at the edges of the axes."""
    options = {"color": colour, "alpha": 0.5, "zorder": 1}
    for mean, other, limits, heads, order in (
        (x, y.mean, axes.get_xlim(), "<>", 1),
        (y, x.mean, axes.get_ylim(), "v^", -1),  # order -1 exchanges the two coordinates
    ):
        if mean.margin is None:
            continue
        interval = mean.mean - mean.margin, mean.mean + mean.margin
        ends = max(interval[0], limits[0]), min(interval[1], limits[1])
        axes.plot(*(ends, (other, other))[::order], linewidth=1, **options)
        for end, true_end, head in zip(ends, interval, heads, strict=True):
            if end != true_end:
                axes.plot(*((end,), (other,))[::order], head, ms=5, mew=0, clip_on=False, **options)
