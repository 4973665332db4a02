"""The picture of a search for K: the curve, and the images that the anchors of one prompt point at."""

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from dpdmd.find_anchor.result import Result, Samples
from dpdmd.report.style import PLOT_SETTINGS, SOFT, TEACHER_COLOUR, run_style

WIDTH, CURVE_HEIGHT, DPI = 7.0, 2.9, 160  # inches; dots per inch
CAPTION = 90  # letters of the prompt


def draw(result: Result, samples: Samples) -> Image.Image:
    """Draw the curve with its intervals over prompts, and below it the images, one row for each seed."""
    columns, rows = len(samples.steps), len(samples.rows)
    side = WIDTH / (columns + 0.3)
    with matplotlib.rc_context(PLOT_SETTINGS):
        figure = Figure(figsize=(WIDTH, CURVE_HEIGHT + 0.5 + rows * side), dpi=DPI, layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(CURVE_HEIGHT, 0.5 + rows * side))
        _draw_curve(above.add_subplot(), result)
        below.suptitle(f"first {rows} seeds of: {samples.prompt[:CAPTION]}", color=SOFT, size=8, parse_math=False)
        grid = below.subplots(rows, columns, squeeze=False)
        for row, images in zip(grid, samples.rows, strict=True):
            for axes, image in zip(row, images, strict=True):
                axes.imshow(image)
                axes.set_axis_off()
        for axes, k in zip(grid[0], samples.steps, strict=True):
            name = f"K = {k}" if k != samples.steps[-1] else "teacher"
            axes.set_title(name, size=8, weight="bold" if k == result.k_anchor else "normal")
        png = io.BytesIO()
        figure.savefig(png, format="png")
    return Image.open(png)


def _draw_curve(axes: Axes, result: Result) -> None:
    steps = [point.k for point in result.points]
    for index, name in enumerate(("decidedness", "spread")):
        summaries, style = [getattr(point, name) for point in result.points], run_style(index)
        axes.plot(
            steps, [each.mean for each in summaries], color=style.colour, linestyle=style.dash, label=f"{name} of x̂(K)"
        )
        if summaries[0].low is not None:
            band = [each.low for each in summaries], [each.high for each in summaries]
            axes.fill_between(steps, *band, color=style.colour, alpha=0.15, linewidth=0)
    axes.axhline(result.threshold, color=TEACHER_COLOUR, linewidth=1, linestyle="dotted")
    axes.axvline(result.k_anchor, color=TEACHER_COLOUR, linewidth=1, linestyle="dotted")
    axes.annotate(f"K = {result.k_anchor}", (result.k_anchor, 0.02), xytext=(3, 0), textcoords="offset points")
    axes.set_ylim(min(0.0, *(point.decidedness.mean for point in result.points)), axes.get_ylim()[1] + 0.02)
    axes.set_xlabel("teacher steps to the anchor, K →", loc="right")
    axes.legend(frameon=False, loc="lower right")
