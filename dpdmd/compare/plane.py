"""A sweep's rows in the plane of two columns: every training faintly, means with their intervals."""

import io
import math
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
from dpdmd.report.figures import SETTINGS
from dpdmd.report.style import TEACHER_STYLE, Style, style
from dpdmd.utils.image_grid import save_image

WIDTH, HEIGHT, DOTS = 5.6, 3.6, 160  # inches without the legend; dots of an inch
HANDLE, LINE = 0.5, 0.18  # inches: what mark and gaps take beside a name, and a row of names
MEAN, ONE = 7.5, 3.8  # points: side of a square as large as a row's mark, and as one training's


def draw_plane(sweep: Sweep, table: Table, path: Path) -> None:
    """Write the picture of the sweep's plane; a row that lacks one of the two figures is left out.

    The axes show all points. The interval of two or three trainings may reach far beyond them: it then ends in an
    arrowhead at the edge.
    """
    plane, looks = sweep.plane, styles(sweep)
    shown = {
        name: (row[plane.x], row[plane.y]) for name, row in table.items() if row[plane.x].mean and row[plane.y].mean
    }
    if not shown:
        return
    names = {name: _short(name) for name in shown}
    columns = max(1, min(len(shown), int(WIDTH / (HANDLE + max(map(_inches, names.values()))))))
    height = HEIGHT + LINE * math.ceil(len(shown) / columns)
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH, height), dpi=DOTS, layout="constrained")
        axes = figure.add_subplot()
        axes.margins(0.15)
        for name, cells in shown.items():
            _draw_points(axes, names[name], *cells, looks[name])
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
        for name, (x, y) in shown.items():
            _draw_intervals(axes, x.mean, y.mean, looks[name].colour)
        axes.set_xlabel(f"{plane.x} →", loc="right")
        axes.set_ylabel(f"{plane.y} →", loc="top")
        figure.legend(loc="outside lower left", ncols=columns, frameon=False, handletextpad=0.3, columnspacing=1)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
    save_image(Image.open(drawn), path)


def styles(sweep: Sweep) -> dict[str, Style]:
    """Look of each row: trainings as the report shows the same ones in the same order, then what is not trained.

    The teacher is grey, as it is there: the model of that name, else the first one.
    """
    models = [name for name, row in sweep.configurations.items() if row.model is not None]
    grey = "teacher" if "teacher" in models else next(iter(models), None)
    coloured = [name for name in sweep.configurations if name not in models]
    coloured += [name for name in models if name != grey]
    looks = {name: style(index) for index, name in enumerate(coloured)}
    return {name: looks.get(name, TEACHER_STYLE) for name in sweep.configurations}


def _short(name: str) -> str:
    """As much of a name as fits below the axes."""
    if _inches(name) <= WIDTH - HANDLE:
        return name
    while _inches(f"{name}…") > WIDTH - HANDLE:
        name = name[:-1]
    return f"{name}…"


def _inches(name: str) -> float:
    """How wide a name is set."""
    return TextPath((0, 0), name, size=SETTINGS["font.size"]).get_extents().width / 72


def _draw_points(axes: Axes, name: str, x: Cell, y: Cell, look: Style) -> None:
    both = [seed for seed in x.by_seed if seed in y.by_seed]
    if len(both) > 1:
        points = ([cell.by_seed[seed] for seed in both] for cell in (x, y))
        axes.plot(*points, look.mark, color=look.colour, alpha=0.35, ms=mark_size(look.mark, ONE), mew=0, zorder=2)
    size = mark_size(look.mark, MEAN)
    axes.plot(x.mean.mean, y.mean.mean, look.mark, color=look.colour, ms=size, mec="white", zorder=3, label=name)


def mark_size(mark: str, side: float) -> float:
    """Markersize at which a mark covers as much as a square of `side` points: a star of the same size covers a quarter
    of one."""
    marker = MarkerStyle(mark)
    area = 0.0
    for corners in marker.get_path().transformed(marker.get_transform()).to_polygons():
        x, y = corners.T
        area += abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1])) / 2
    return side / math.sqrt(area)


def _draw_intervals(axes: Axes, x: SeedMean, y: SeedMean, colour: str) -> None:
    """Both 95% intervals of a mean, each no further than the axes' edge."""
    look = {"color": colour, "alpha": 0.5, "zorder": 1}
    for mean, place, limits, heads, turn in (
        (x, y.mean, axes.get_xlim(), "<>", 1),
        (y, x.mean, axes.get_ylim(), "v^", -1),
    ):
        if mean.margin is None:
            continue
        whole = mean.mean - mean.margin, mean.mean + mean.margin
        ends = max(whole[0], limits[0]), min(whole[1], limits[1])
        axes.plot(*(ends, (place, place))[::turn], linewidth=1, **look)
        for end, true, head in zip(ends, whole, heads, strict=True):
            if end != true:
                axes.plot(*((end,), (place,))[::turn], head, ms=5, mew=0, clip_on=False, **look)
