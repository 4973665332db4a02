"""The page: everything that a report shows, gathered and handed to the template in `template/`."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dpdmd import __version__
from dpdmd.evaluation.seed_grids import TEACHER
from dpdmd.report import figures, tables
from dpdmd.report.measured import COLUMNS, Measured, kinds
from dpdmd.report.runs import Run
from dpdmd.report.scores import Metric, Score
from dpdmd.report.style import AVERAGE_DASH, TEACHER_STYLE, Style, style

TEMPLATE = Path(__file__).parent / "template"
# Figures of a step that are told in the table of time and memory, and what is no figure.
_NO_CURVE = {"step", "turn", "seconds", "samples_per_second", "memory_gb", "skipped"}
_CURVES = {
    "loss_student": "Student loss",
    "loss_dmd": "DMD loss",
    "loss_div": "Diversity loss",
    "loss_fake": "Fake-score loss",
    "dmd_gradient_norm": "DMD gradient norm",
    "score_error_cosine": "Cosine of real and fake errors",
    "grad_norm": "Gradient norm",
    "grad_norm_discriminator": "Gradient norm of the discriminator",
    "loss_perceptual": "Perceptual loss",
    "loss_gan": "Generator loss (GAN)",
    "loss_discriminator": "Discriminator loss",
    "logit_real": "Discriminator's logit, teacher samples",
    "logit_fake": "Discriminator's logit, student samples",
    "lr": "Learning rate",
}
_ONE_TURN = ("loss", "logit", "discriminator", "dmd", "score")  # figures that only one turn has: it need not be told


@dataclass(frozen=True)
class Shown:
    """A run, or the moving average of one, with its place in the report.

    Attributes:
        key: names it in ids and classes; an average has its run's.
        average: it has evaluations alone.
    """

    key: str
    style: Style
    run: Run
    spent: tables.Spent
    average: bool = False


@dataclass(frozen=True)
class Drawn:
    """A figure and what is said of it."""

    title: str
    svg: Markup
    alt: str


@dataclass(frozen=True)
class Cell:
    """One model's sheets of one prompt: step -> data URI; the teacher has one, at step None."""

    key: str
    label: str
    style: Style
    num_seeds: int
    size: tuple[int, int]
    sheets: dict[int | None, str]


@dataclass(frozen=True)
class Prompt:
    """One row of the seed grids."""

    image_set: str
    text: str
    cells: list[Cell]


def render(runs: Sequence[Run]) -> str:
    """The page of these runs, complete in itself: no script, style, font or image from elsewhere."""
    shown = [Shown(f"run{index}", style(index), run, tables.spent(run)) for index, run in enumerate(runs)]
    scored = [each for item in shown for each in (item, *_average(item))]
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.metrics))
    measured = _measured(shown)
    labels = _labels(metrics)
    rows, prompts = tables.options(runs), _prompts(shown)
    steps = sorted({step for prompt in prompts for cell in prompt.cells for step in cell.sheets if step is not None})
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=tables.number, interval=tables.interval, duration=tables.duration, breakable=tables.breakable
    )
    return environment.get_template("report.html").render(
        css=Markup((TEMPLATE / "report.css").read_text(encoding="utf-8")),
        js=Markup((TEMPLATE / "report.js").read_text(encoding="utf-8")),
        version=__version__,
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        shown=shown,
        scored=scored,
        share=tables.share,
        measured=measured,
        kinds=kinds([each for _, _, each in measured]),
        world_columns=COLUMNS,
        teacher_style=TEACHER_STYLE,
        metrics=metrics,
        labels=labels,
        teachers=_teacher_rows(shown),
        dash=tables.NONE,
        planes=_planes(scored, metrics, labels),
        scores=_scores(scored, metrics, labels),
        training=_training(shown),
        smoothing=figures.SMOOTHING,
        prompts=prompts,
        steps=steps,
        # The last step's stand in the page itself.
        sheets={
            cell.key: dict(list(cell.sheets.items())[:-1])
            for prompt in prompts
            for cell in prompt.cells
            if None not in cell.sheets
        },
        options=rows,
        differing=[row for row in rows if row.differs],
        grouped=tables.by_group(rows),
        environment=tables.environment(runs),
    )


def _average(item: Shown) -> list[Shown]:
    """The moving average of a run, if it was evaluated: the run's colour and mark, other dashes."""
    run = item.run.of_average()
    look = replace(item.style, dash=AVERAGE_DASH)
    return [replace(item, run=run, style=look, spent=tables.spent(run), average=True)] if run else []


def _measured(shown: Sequence[Shown]) -> list[tuple[str, Style, Measured]]:
    """(name, look, what was measured) of every model; others than the runs' own once, and first."""
    others: dict[str, tuple[str, Style, Measured]] = {}
    own = []
    for item in shown:
        for each in item.run.measured:
            if each.of_run:
                own.append((item.run.name, item.style, each))
            else:
                name = "teacher" if each.model == item.run.config.get("teacher_id") else each.model
                others.setdefault(repr(each), (name, TEACHER_STYLE, each))
    return [*others.values(), *own]


def _labels(metrics: Sequence[Metric]) -> dict[str, str]:
    """Metric's name -> what it is called here; with its image set where there are several."""
    several = len({metric.image_set for metric in metrics}) > 1
    return {m.name: f"{m.label}, {m.image_set}" if several else m.label for m in metrics}


def _teachers(shown: Sequence[Shown], *names: str) -> list[tuple[Score, ...]]:
    """The different scores that the runs' teachers have in these metrics: one where all share teacher and images."""
    found = {
        tuple(item.run.teacher[name].mean for name in names): tuple(item.run.teacher[name] for name in names)
        for item in shown
        if all(name in item.run.teacher and item.run.teacher[name].mean is not None for name in names)
    }
    return list(found.values())


def _teacher_rows(shown: Sequence[Shown]) -> list[tuple[str, dict[str, Score]]]:
    """(name, scores) of each different teacher; named by its runs where there are several."""
    rows: list[tuple[list[str], dict[str, Score]]] = []
    for item in shown:
        means = {name: score.mean for name, score in item.run.teacher.items()}
        same = next((row for row in rows if {n: s.mean for n, s in row[1].items()} == means), None)
        if same:
            same[0].append(item.run.name)
        elif means:
            rows.append(([item.run.name], item.run.teacher))
    return [(f"teacher of {', '.join(names)}" if len(rows) > 1 else "teacher", scores) for names, scores in rows]


def _scores(shown: Sequence[Shown], metrics: Sequence[Metric], labels: dict[str, str]) -> list[Drawn]:
    drawn = []
    for index, metric in enumerate(metric for metric in metrics if not metric.rescaled):
        curves, told = [], []
        for item in shown:
            scores = [(r["step"], item.run.score(r, metric)) for r in item.run.evaluations if metric.name in r]
            if any(score.mean is not None for _, score in scores):
                steps = figures.numbers([step for step, _ in scores])
                values, low, high = (
                    figures.numbers([getattr(score, part) for _, score in scores]) for part in ("mean", "low", "high")
                )
                curves.append(figures.Curve(item.key, item.style, steps, values, low, high))
                told.append(f"{item.run.name} {tables.number(scores[-1][1].mean)} at step {scores[-1][0]}")
        teachers = [scores[0] for scores in _teachers(shown, metric.name)]
        told += [f"teacher {tables.number(score.mean)}" for score in teachers]
        svg = figures.score_figure(f"score{index}", curves, teachers)
        drawn.append(Drawn(labels[metric.name], Markup(svg), f"{labels[metric.name]} over steps: {'; '.join(told)}."))
    return drawn


def _planes(shown: Sequence[Shown], metrics: Sequence[Metric], labels: dict[str, str]) -> dict[str, list[Drawn]]:
    """Preference -> its plane with each diversity."""
    pairs = [
        (across, upward)
        for upward in metrics
        for across in metrics
        if across.diversity and not upward.diversity and not upward.rescaled
    ]
    drawn: dict[str, list[Drawn]] = {}
    for index, (across, upward) in enumerate(pairs):
        paths = []
        for item in shown:
            points = [(item.run.score(r, across), item.run.score(r, upward)) for r in item.run.evaluations]
            points = [(x, y) for x, y in points if x.mean is not None and y.mean is not None]
            if points:
                paths.append(figures.Path(item.key, item.style, points))
        names = labels[across.name], labels[upward.name]
        teachers = _teachers(shown, across.name, upward.name)
        svg = figures.plane_figure(f"plane{index}", names, paths, teachers)
        alt = f"{names[1]} against {names[0]}, a path over the evaluations for each run, and the teacher's point."
        title = f"{names[1]} against {names[0]}"
        drawn.setdefault(names[1], []).append(Drawn(title, Markup(svg), alt))
    return drawn


def _training(shown: Sequence[Shown]) -> list[Drawn]:
    """A figure for each figure of a step, student's turns first: losses, then what goes with them."""
    pairs = dict.fromkeys(
        (record["turn"], name)
        for item in shown
        for record in item.run.steps
        for name, value in record.items()
        if name not in _NO_CURVE and isinstance(value, (int, float))
    )
    drawn = []
    for index, (turn, name) in enumerate(sorted(pairs, key=lambda pair: (pair[0] != "student", "loss" not in pair[1]))):
        curves = []
        for item in shown:
            records = [record for record in item.run.steps if record["turn"] == turn and name in record]
            if records:
                steps = figures.numbers([record["step"] for record in records])
                curves.append(
                    figures.Curve(item.key, item.style, steps, figures.numbers([record[name] for record in records]))
                )
        title = _CURVES.get(name, name.replace("_", " ").capitalize())
        title += "" if any(part in name for part in _ONE_TURN) else f", {turn} turn"
        svg = figures.training_figure(f"training{index}", curves)
        drawn.append(Drawn(title, Markup(svg), f"{title} over steps, of {len(curves)} run{'s'[: len(curves) > 1]}."))
    return drawn


def _prompts(shown: Sequence[Shown]) -> list[Prompt]:
    """Every prompt that some run kept sheets of: the teachers' first (equal ones once), then each run's."""
    wanted = dict.fromkeys(
        (grid.image_set, grid.prompt) for item in shown for grids in item.run.grids.values() for grid in grids
    )
    found = []
    for index, (image_set, text) in enumerate(wanted):
        cells: list[Cell] = []
        for item in shown:
            for grid in _grids(item.run, TEACHER, image_set, text):
                uri = _data_uri(grid.file)
                if all(cell.sheets[None] != uri for cell in cells):
                    key = f"sheet{index}-teacher{len(cells)}"
                    cells.append(Cell(key, "teacher", TEACHER_STYLE, grid.num_seeds, grid.size, {None: uri}))
        for item in shown:
            grids = {
                step: grid
                for step in item.run.grids
                if step != TEACHER
                for grid in _grids(item.run, step, image_set, text)
            }
            if grids:
                last = grids[max(grids)]
                sheets = {step: _data_uri(grid.file) for step, grid in grids.items()}
                key = f"sheet{index}-{item.key}"
                cells.append(Cell(key, item.run.name, item.style, last.num_seeds, last.size, sheets))
        found.append(Prompt(image_set, text, cells))
    return found


def _grids(run: Run, step: int | str, image_set: str, prompt: str) -> list[Any]:
    return [grid for grid in run.grids.get(step, []) if (grid.image_set, grid.prompt) == (image_set, prompt)][:1]


def _data_uri(path: Path) -> str:
    return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"
