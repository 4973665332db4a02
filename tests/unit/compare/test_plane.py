"""The plane: markers, colours, names and intervals of the rows."""

from itertools import pairwise

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from PIL import Image
from small_sweep import sweep_of

from dpdmd.compare import plane, tables
from dpdmd.evaluation.statistics import mean_over_seeds
from dpdmd.report.style import TEACHER_COLOUR, run_style

ROWS = {"teacher": "m", "other": "n", "dmd": None, "dpdmd": None}
VALUES = {
    "teacher": ([0.9], [0.9]),
    "other": ([0.8], [0.8]),
    "dmd": ([0.5, 0.51], [0.7, 0.7]),
    "dpdmd": ([0.75, 0.76], [0.72, 0.73]),
}


def table_of(values: dict[str, tuple[list[float], list[float]]]) -> tables.Table:
    """Return the table of row -> (entropies, accuracies), one per seed; a single one is of an untrained model."""

    def cell(numbers: list[float]) -> tables.Cell:
        seeds = [None] if len(numbers) == 1 else list(range(len(numbers)))
        return tables.Cell(dict(zip(seeds, numbers, strict=True)), mean_over_seeds(numbers), None, None)

    return {name: {"entropy": cell(x), "accuracy": cell(y)} for name, (x, y) in values.items()}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Return a function that draws a plane and returns its figure."""
    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: saved.append(self) or save(self, *a, **k))

    def draw(rows: dict, values: dict, calls: dict | None = None) -> Figure:
        plane.draw_plane(sweep_of(rows), table_of(values), tmp_path / "plane.png", calls)
        with Image.open(tmp_path / "plane.png") as made:
            made.verify()
        return saved[-1]

    return draw


def markers(figure: Figure) -> dict[str, list]:
    """Return name -> lines of markers with that name; "" -> those of single trainings."""
    found: dict[str, list] = {}
    for line in figure.axes[0].lines:
        if line.get_marker() not in ("None", None, "", "<", ">") and line.get_clip_on():
            label = line.get_label()
            found.setdefault("" if label.startswith("_") else label, []).append(line)
    return found


def test_the_plane_has_every_training_and_every_row(drawn):
    """Small markers for trainings, large ones for means, each named once. Given models have no small ones."""
    found = markers(drawn(ROWS, VALUES))
    small = [line.get_xydata().tolist() for line in found.pop("")]
    assert small == [[[0.5, 0.7], [0.51, 0.7]], [[0.75, 0.72], [0.76, 0.73]]]
    shown = {name: line.get_xydata().tolist() for name, (line,) in found.items()}
    means = {"teacher": [0.9, 0.9], "other": [0.8, 0.8], "dmd": [0.505, 0.7], "dpdmd": [0.755, 0.725]}
    assert shown == {name: [pytest.approx(mean)] for name, mean in means.items()}


def test_the_planes_colours_are_the_reports_and_only_the_teacher_is_grey(drawn):
    """Trainings have the report's colours in order, whatever rows are between them."""
    colours = {name: to_hex(line.get_color()) for name, (line, *_) in markers(drawn(ROWS, VALUES)).items() if name}
    wanted = {
        "teacher": TEACHER_COLOUR,
        "dmd": run_style(0).colour,
        "dpdmd": run_style(1).colour,
        "other": run_style(2).colour,
    }
    assert colours == wanted
    assert plane.styles(sweep_of({"a": "m", "b": None, "teacher": "n"}))["teacher"].colour == TEACHER_COLOUR
    assert plane.styles(sweep_of({"a": "m", "b": None, "c": "n"}))["a"].marker == "*"


def test_markers_of_every_shape_cover_the_same_area(drawn):
    rows = {"teacher": "m", **dict.fromkeys("abcdefgh")}
    values = {name: ([0.1 * i, 0.1 * i + 0.01], [0.2, 0.3]) for i, name in enumerate(rows)} | {
        "teacher": ([1.0], [1.0])
    }
    areas = {}
    for name, (line, *_) in markers(drawn(rows, values)).items():
        shape = MarkerStyle(line.get_marker())
        path = shape.get_path().transformed(shape.get_transform())
        (corners,) = path.to_polygons()
        shoelace = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(corners)) / 2
        areas[name] = abs(shoelace) * line.get_markersize() ** 2
    small = areas.pop("")
    assert len({style.marker for style in plane.styles(sweep_of(rows)).values()}) == 7  # all shapes occur
    assert list(areas.values()) == pytest.approx([areas["a"]] * len(areas), rel=0.01) and small < areas["a"] / 3


def test_long_names_leave_the_axes_their_size(drawn):
    """Names are below the axes, in as many columns as fit, and only cut if wider than the image."""
    long = {name: f"{name}_with_student_sigmas_trailing_and_head_start_60" for name in ROWS}
    long["other"] = "o" * 200
    plain = drawn(ROWS, VALUES)
    wide = drawn({long[n]: m for n, m in ROWS.items()}, {long[n]: v for n, v in VALUES.items()})
    for figure in (plain, wide):
        size = figure.axes[0].get_window_extent().size / figure.dpi
        assert size[0] > 0.8 * plane.WIDTH and size[1] > 0.75 * plane.HEIGHT
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 < figure.axes[0].get_window_extent().y0
    texts = [text.get_text() for text in wide.legends[0].get_texts()]
    assert long["dpdmd"] in texts and any(text.startswith("ooo") and text.endswith("o…") for text in texts)
    assert plain.legends[0]._ncols == 4 and wide.legends[0]._ncols == 1


def test_an_interval_beyond_the_axes_ends_in_an_arrowhead_at_the_edge(drawn):
    """dmd's accuracies are equal and its entropies close; the intervals of dpdmd are wider than the axes."""
    figure = drawn(
        {"dmd": None, "dpdmd": None}, {"dmd": ([0.5, 0.5001], [0.7, 0.7]), "dpdmd": ([0.6, 0.8], [0.7, 0.8])}
    )
    axes = figure.axes[0]
    heads = {line.get_marker(): line for line in axes.lines if not line.get_clip_on()}
    assert set(heads) == {"<", ">", "v", "^"}
    assert all(to_hex(line.get_color()) == run_style(1).colour for line in heads.values())
    assert [float(heads[mark].get_xdata()[0]) for mark in "<>"] == list(axes.get_xlim())
    assert [float(heads[mark].get_ydata()[0]) for mark in "v^"] == list(axes.get_ylim())
    for line in axes.lines:
        (left, low), (right, high) = line.get_xydata().min(axis=0), line.get_xydata().max(axis=0)
        assert axes.get_xlim()[0] <= left <= right <= axes.get_xlim()[1]
        assert axes.get_ylim()[0] <= low <= high <= axes.get_ylim()[1]


def test_a_plane_without_any_row_is_not_drawn(tmp_path):
    row = {"entropy": tables.Cell({}, None, None, None), "accuracy": tables.Cell({}, None, None, None)}
    plane.draw_plane(sweep_of({"dmd": None}), {"dmd": row}, tmp_path / "plane.png")
    assert not (tmp_path / "plane.png").exists()


def test_the_area_of_a_marker_is_the_cost_of_its_row(drawn):
    """Four times the calls, twice the side; a row that was not trained has the usual marker."""
    figure = drawn(ROWS, VALUES, {"dmd": 1_000, "dpdmd": 4_000})
    (teacher,), (dmd,), (dpdmd,) = (markers(figure)[name] for name in ("teacher", "dmd", "dpdmd"))

    def side(line) -> float:
        return line.get_markersize() / plane.marker_size(line.get_marker(), 1.0)

    assert side(dpdmd) == pytest.approx(2 * side(dmd)) == pytest.approx(plane.LARGEST)
    assert side(teacher) == pytest.approx(plane.MEAN)
    assert figure.legends[0].get_title().get_text() == plane.AREA
    assert not drawn(ROWS, VALUES).legends[0].get_title().get_text()
