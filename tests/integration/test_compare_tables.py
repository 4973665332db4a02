"""`dpdmd.compare`: figures as the measures left them, tables and pictures of them."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from PIL import Image
from small_sweep import call, two_methods

from dpdmd.compare import cli, plane, sample_grid, tables
from dpdmd.compare.figures import read_figures
from dpdmd.compare.sweep import Configuration, Measure, Plane, SampleGrid, Sweep
from dpdmd.evaluation.statistics import mean_over_seeds
from dpdmd.report.style import TEACHER_COLOUR, style
from dpdmd.shapes import measure


@pytest.fixture
def values(tmp_path: Path, tiny_pipeline: Path) -> dict:
    return two_methods(tmp_path, tiny_pipeline)


def test_the_figures_of_a_root_program_are_read_with_their_images(tmp_path):
    """Missing pictures leave the prompt's mean over the others; a prompt without any is not there."""
    (tmp_path / "summary.json").write_text(json.dumps({"metrics": {"div_dino": {"mean": 0.4}, "vqr1": {"mean": None}}}))
    rows = ["prompt_index,sample_index,file,prompt,div_dino,vqr1,notes", "0,0,a,cat,0.2,,", "0,1,b,cat,0.4,,"]
    rows += ["1,0,c,dog,0.5,,", "2,0,d,owl,,,"]
    (tmp_path / "per_image.csv").write_text("\n".join(rows) + "\n")
    found = read_figures(tmp_path / "summary.json")
    assert found["div_dino"].mean == 0.4 and found["vqr1"].mean is None and found["vqr1"].by_prompt == {}
    assert found["div_dino"].by_prompt == pytest.approx({"0 cat": 0.3, "1 dog": 0.5})
    with pytest.raises(ValueError, match=r"neither a summary\.json"):
        read_figures(tmp_path / "per_image.csv")


def test_the_figures_of_the_small_world_are_those_it_prints(tiny_pipeline, tmp_path):
    """Means as `dpdmd.shapes.measure` has them, from its prompts; and a picture of the sweep's models."""
    (tmp_path / "prompts.txt").write_text("a red circle\na small shape\na small red circle on a grey background\n")
    oracle = f"python -m dpdmd.shapes.measure --model {{model}} --prompt_txt {tmp_path / 'prompts.txt'} --steps 1"
    sweep = {
        "title": "One pipeline",
        "configurations": {"teacher": {"model": str(tiny_pipeline)}},
        "measure": {
            "oracle": {
                "command": f"{oracle} --num_seeds 2 --out {{out}}/figures.json",
                "result": "figures.json",
                "metrics": ["accuracy", "entropy"],
            }
        },
        "picture": {"prompts": ["a red circle"], "rows": ["teacher"], "num_images": 2},
    }
    assert cli.main(call(sweep, tmp_path)) == 0
    path = tmp_path / "out" / "runs" / "teacher" / "oracle" / "figures.json"
    found, (theirs,) = read_figures(path), json.loads(path.read_text()).values()
    for name in measure.COLUMNS:
        assert found[name].mean == pytest.approx(theirs["mean"][name])
    assert len(found["accuracy"].by_prompt) == 3 and len(found["entropy"].by_prompt) == 2
    assert set(found) > {"accuracy/colour_shape", "accuracy/single_attribute", "accuracy/all_attributes"}
    assert set(theirs["categories"]) == {"single_attribute", "colour_shape", "all_attributes"}
    assert (tmp_path / "out" / "picture.png").is_file()


def sweep_of(rows: dict[str, str | None], **more: object) -> Sweep:
    """Rows (name -> model, None where it is trained) with two columns."""
    configurations = {name: Configuration(name, model, (), {}, {}, {}) for name, model in rows.items()}
    measures = {"m": Measure("m", ("x",), "y", {"entropy": "entropy", "accuracy": "accuracy"})}
    filled = {"title": "T", "config": None, "on_cores": True, "seeds": (0, 1), "baseline": None, "picture": None}
    filled |= {"path": Path("sweeps/a_sweep.yaml"), "plane": Plane("entropy", "accuracy"), **more}
    return Sweep(configurations=configurations, measures=measures, **filled)


def table_of(values: dict[str, tuple[list[float], list[float]]]) -> tables.Table:
    """Row -> entropies and accuracies, one a seed; a single one is that of a model that is not trained."""

    def cell(numbers: list[float]) -> tables.Cell:
        seeds = [None] if len(numbers) == 1 else list(range(len(numbers)))
        return tables.Cell(dict(zip(seeds, numbers, strict=True)), mean_over_seeds(numbers), None, None)

    return {name: {"entropy": cell(x), "accuracy": cell(y)} for name, (x, y) in values.items()}


ROWS = {"teacher": "m", "other": "n", "dmd": None, "dpdmd": None}
VALUES = {
    "teacher": ([0.9], [0.9]),
    "other": ([0.8], [0.8]),
    "dmd": ([0.5, 0.51], [0.7, 0.7]),
    "dpdmd": ([0.75, 0.76], [0.72, 0.73]),
}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """The figure that `draw_plane` draws of rows and values."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or save(self, *a, **k))

    def draw(rows: dict, values: dict) -> Figure:
        plane.draw_plane(sweep_of(rows), table_of(values), tmp_path / "plane.png")
        with Image.open(tmp_path / "plane.png") as made:
            made.verify()
        return figures[-1]

    return draw


def marks(figure: Figure) -> dict[str, list]:
    """Name -> marks of that name; "" -> those of single trainings."""
    found: dict[str, list] = {}
    for line in figure.axes[0].lines:
        if line.get_marker() not in ("None", None, "", "<", ">") and line.get_clip_on():
            label = line.get_label()
            found.setdefault("" if label.startswith("_") else label, []).append(line)
    return found


def test_the_plane_has_every_training_and_every_row(drawn):
    """Small marks where the trainings are, large ones at the means, each named once; models have no small ones."""
    found = marks(drawn(ROWS, VALUES))
    small = [line.get_xydata().tolist() for line in found.pop("")]
    assert small == [[[0.5, 0.7], [0.51, 0.7]], [[0.75, 0.72], [0.76, 0.73]]]
    shown = {name: line.get_xydata().tolist() for name, (line,) in found.items()}
    means = {"teacher": [0.9, 0.9], "other": [0.8, 0.8], "dmd": [0.505, 0.7], "dpdmd": [0.755, 0.725]}
    assert shown == {name: [pytest.approx(mean)] for name, mean in means.items()}


def test_the_planes_colours_are_the_reports_and_only_the_teacher_is_grey(drawn):
    """Trainings count from the report's first colour, whatever stands between them."""
    colours = {name: to_hex(line.get_color()) for name, (line, *_) in marks(drawn(ROWS, VALUES)).items() if name}
    wanted = {"teacher": TEACHER_COLOUR, "dmd": style(0).colour, "dpdmd": style(1).colour, "other": style(2).colour}
    assert colours == wanted
    assert plane.styles(sweep_of({"a": "m", "b": None, "teacher": "n"}))["teacher"].colour == TEACHER_COLOUR
    assert plane.styles(sweep_of({"a": "m", "b": None, "c": "n"}))["a"].mark == "*"


def test_marks_of_every_shape_cover_the_same_area(drawn):
    rows = {"teacher": "m", **dict.fromkeys("abcdefgh")}
    values = {name: ([0.1 * i, 0.1 * i + 0.01], [0.2, 0.3]) for i, name in enumerate(rows)} | {
        "teacher": ([1.0], [1.0])
    }
    areas = {}
    for name, (line, *_) in marks(drawn(rows, values)).items():
        shape = MarkerStyle(line.get_marker())
        path = shape.get_path().transformed(shape.get_transform())
        (corners,) = path.to_polygons()
        shoelace = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(corners)) / 2
        areas[name] = abs(shoelace) * line.get_markersize() ** 2
    small = areas.pop("")
    assert len({line.mark for line in plane.styles(sweep_of(rows)).values()}) == 7  # all shapes are there
    assert list(areas.values()) == pytest.approx([areas["a"]] * len(areas), rel=0.01) and small < areas["a"] / 3


def test_long_names_leave_the_axes_their_size(drawn):
    """They stand below, in as many columns as fit, and whole but for those wider than the picture."""
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
    """dmd's two accuracies are equal and its entropies' interval short; dpdmd's reach far beyond all points."""
    figure = drawn(
        {"dmd": None, "dpdmd": None}, {"dmd": ([0.5, 0.5001], [0.7, 0.7]), "dpdmd": ([0.6, 0.8], [0.7, 0.8])}
    )
    axes = figure.axes[0]
    heads = {line.get_marker(): line for line in axes.lines if not line.get_clip_on()}
    assert set(heads) == {"<", ">", "v", "^"}
    assert all(to_hex(line.get_color()) == style(1).colour for line in heads.values())
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


def test_the_latex_table_is_whole_and_escaped():
    sweep = sweep_of({"a_b": None}, title=r"K_1 & 5% {} <>|~^ #$ " + "\\")
    row = {
        "div|dino_1": tables.Cell({0: -0.25}, mean_over_seeds([-0.25]), 0.5, None),
        "b": tables.Cell({}, None, None, None),
    }
    sweep.measures["m"] = Measure("m", ("x",), "y", {"div|dino_1": "x", "b": "b"})
    assert (
        tables.latex(sweep, {"a_b": row})
        == r"""% \usepackage{booktabs}
\begin{table}
\centering
\caption{K\_1 \& 5\% \{\} \textless{}\textgreater{}\textbar{}\textasciitilde{}\textasciicircum{} \#\$ \textbackslash{}.}
\label{tab:a_sweep}
\begin{tabular}{lcc}
\toprule
 & div\textbar{}dino\_1 & b \\
\midrule
a\_b & $-0.250$ (0.500) & -- \\
\bottomrule
\end{tabular}
\end{table}
"""
    )
    assert r"|  | div\|dino_1 | b |" in tables.markdown(sweep, {"a_b": row}, "head").splitlines()


class Sampled:
    """A model that makes grey pictures, and tells what it was asked for."""

    def __init__(self, size: int):
        self.settings = type("Settings", (), {"sigmas": torch.zeros(5)})
        self.size, self.batches = size, []

    def sweep(self, encoder, prompts, batches, seed, progress):
        for keys in batches:
            self.batches.append(len(keys))
            yield keys, torch.full((len(keys), 3, self.size, self.size), 0.5)


@pytest.mark.parametrize(("on_gpu", "sizes"), [(True, [4, 4, 1]), (False, [9])])
def test_the_image_fits_a_gpu_and_a_screen(tmp_path, monkeypatch, on_gpu, sizes):
    """On one in bf16 and few at a time; tiles of at most 256 pixels, whatever the model makes."""
    model, asked = Sampled(600), []
    monkeypatch.setattr("torch.cuda.is_available", lambda: on_gpu)
    monkeypatch.setattr(
        sample_grid, "load_sampler", lambda path, device, dtype: asked.append((device.type, dtype)) or (model, None)
    )
    sample_grid.draw(SampleGrid(("a red circle",), ("a",)), {"a": tmp_path}, tmp_path / "picture.png")
    assert asked == [("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)] and model.batches == sizes
    with Image.open(tmp_path / "picture.png") as made:
        assert 9 * 256 <= made.width < 9 * 264 and made.height < 2 * 256


def test_a_image_that_is_not_finite_is_one_line(tmp_path, monkeypatch):
    """It would be black, as if the model had painted so."""

    class Broken(Sampled):
        def sweep(self, *arguments, **more):
            yield from ((keys, made * float("nan")) for keys, made in super().sweep(*arguments, **more))

    monkeypatch.setattr(sample_grid, "load_sampler", lambda *arguments, **more: (Broken(64), None))
    with pytest.raises(ValueError, match=f"--model {tmp_path}: its images are not finite"):
        sample_grid.draw(SampleGrid(("a red circle",), ("a",)), {"a": tmp_path}, tmp_path / "picture.png")


def test_a_image_that_does_not_fit_is_one_line(tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it")

    monkeypatch.setattr(sample_grid, "load_sampler", full)
    with pytest.raises(ValueError, match="out of memory") as told:
        sample_grid.draw(SampleGrid(("a red circle",), ("a",)), {"a": tmp_path}, tmp_path / "picture.png")
    assert "Tried to allocate 2 GiB" in str(told.value) and "\n" not in str(told.value)
