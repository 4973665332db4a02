"""A sweep's rows in the plane of two columns: every training faintly, means with their intervals."""

import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dpdmd.comparison.sweep import Sweep
from dpdmd.comparison.tables import Cell, Table
from dpdmd.grids import save_picture
from dpdmd.reporting.figures import SETTINGS
from dpdmd.reporting.style import TEACHER_STYLE, Style, style

INCHES, DOTS = (5.6, 3.6), 160  # of an inch


def draw_plane(sweep: Sweep, table: Table, path: Path) -> None:
    """Write the picture; a row that lacks one of the two figures is left out.

    The axes show all points; the interval of two or three trainings may reach beyond them.
    """
    plane = sweep.plane
    shown = [
        (name, row[plane.x], row[plane.y], TEACHER_STYLE if None in row[plane.x].by_seed else style(index))
        for index, (name, row) in enumerate(table.items())
        if row[plane.x].mean and row[plane.y].mean
    ]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=INCHES, dpi=DOTS, layout="constrained")
        axes = figure.add_subplot()
        axes.margins(0.15)
        for name, x, y, look in shown:
            _draw_points(axes, name, x, y, look)
        limits = {"xlim": axes.get_xlim(), "ylim": axes.get_ylim()}
        for _, x, y, look in shown:
            margins = {"xerr": x.mean.margin, "yerr": y.mean.margin}
            axes.errorbar(
                x.mean.mean, y.mean.mean, **margins, fmt="none", ecolor=look.colour, elinewidth=1, alpha=0.5, zorder=1
            )
        axes.set(**limits)
        axes.set_xlabel(f"{plane.x} →", loc="right")
        axes.set_ylabel(f"{plane.y} →", loc="top")
        figure.legend(loc="outside right upper", frameon=False)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
    save_picture(Image.open(drawn), path)


def _draw_points(axes: Axes, name: str, x: Cell, y: Cell, look: Style) -> None:
    both = [seed for seed in x.by_seed if seed in y.by_seed]
    if len(both) > 1:
        points = ([cell.by_seed[seed] for seed in both] for cell in (x, y))
        axes.plot(*points, look.mark, color=look.colour, alpha=0.35, ms=4, mew=0, zorder=2)
    size = 12 if look is TEACHER_STYLE else 8
    axes.plot(x.mean.mean, y.mean.mean, look.mark, color=look.colour, ms=size, mec="white", zorder=3, label=name)
