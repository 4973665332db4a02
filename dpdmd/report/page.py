"""Collect everything that a report shows and render the template in `template/`."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from dpdmd import __version__
from dpdmd.report import explanations, plots, tables
from dpdmd.report.health import judge
from dpdmd.report.oracle_metrics import COLUMNS, OracleMetrics, categories
from dpdmd.report.page_images import load_image, process_images, prompt_sheets
from dpdmd.report.runs import Run, score_of
from dpdmd.report.scores import Metric, Score
from dpdmd.report.shown_runs import ShownRun, average
from dpdmd.report.style import TEACHER_STYLE, Style, run_style
from dpdmd.report.sweeps import SweepResult
from dpdmd.utils.paths import same_place
from dpdmd.utils.wording import counted

TEMPLATE = Path(__file__).parent / "template"
# Keys of an update's record that are not plotted: they identify the update, or are in the table of time and memory.
_NOT_PLOTTED = {"step", "turn", "seconds", "samples_per_second", "memory_gb", "skipped"}


@dataclass(frozen=True)
class Plot:
    """A plot with its title, alternative text, and one line on what it shows."""

    title: str
    svg: Markup
    alt: str
    about: str = ""


def render(runs: Sequence[Run], sweeps: Sequence[SweepResult] = ()) -> str:
    """Return the page of these runs and sweeps. It is self-contained: no script, style, font or image is loaded."""
    shown = [
        ShownRun(f"run{index}", run_style(run.entry.style, run.entry.member), run, tables.cost(run))
        for index, run in enumerate(runs)
    ]
    scored = [item for each in shown for item in (each, *average(each))]
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.metrics))
    oracle = _oracle_rows(shown)
    labels = _labels(metrics)
    options, prompts = tables.options(runs), prompt_sheets(shown)
    models = [model for prompt in prompts for model in prompt.models]
    return _template().render(
        css=Markup((TEMPLATE / "report.css").read_text(encoding="utf-8")),
        js=Markup((TEMPLATE / "report.js").read_text(encoding="utf-8")),
        version=__version__,
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        settings=explanations.settings(runs),
        sweeps=[(sweep, load_image(sweep.plane, "Plane of the sweep")) for sweep in sweeps],
        shown=shown,
        scored=scored,
        share=tables.share,
        score_of=score_of,
        oracle=oracle,
        categories=categories([model for _, _, model in oracle]),
        oracle_columns=COLUMNS,
        teacher_style=TEACHER_STYLE,
        metrics=metrics,
        labels=labels,
        teachers=_teacher_rows(shown),
        dash=tables.DASH,
        planes=_plane_plots(scored, metrics, labels),
        scores=_score_plots(scored, metrics, labels),
        training=_training_plots(shown),
        smoothing=plots.SMOOTHING,
        judged=[(item, health) for item in shown if (health := judge(item.run.updates))],
        prompts=prompts,
        process_images=process_images(shown),
        steps=sorted({step for model in models for step in model.sheets if step is not None}),
        # The last sheet of each model is in the page itself.
        sheets={model.key: dict(list(model.sheets.items())[:-1]) for model in models if None not in model.sheets},
        differing=[option for option in options if option.differs],
        grouped=tables.by_group(options),
        environment=tables.environment(runs),
    )


@cache
def _template() -> Template:
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
    return environment.get_template("report.html")


def _oracle_rows(shown: Sequence[ShownRun]) -> list[tuple[str, Style, OracleMetrics]]:
    """Return (name, style, metrics) of every model that the oracle measured: first models outside the runs, once."""
    others: dict[str, tuple[str, Style, OracleMetrics]] = {}
    own = []
    for item in shown:
        for model in item.run.oracle:
            if model.in_run:
                own.append((item.run.name, item.style, model))
            else:
                name = "teacher" if same_place(model.model, item.run.config.get("teacher_id") or "") else model.model
                others.setdefault(repr(model), (name, TEACHER_STYLE, model))
    return [*others.values(), *own]


def _labels(metrics: Sequence[Metric]) -> dict[str, str]:
    """Return metric's name -> label, with its image set if there are several."""
    several = len({metric.image_set for metric in metrics}) > 1
    return {m.name: f"{m.label}, {m.image_set}" if several else m.label for m in metrics}


def _teachers(shown: Sequence[ShownRun], *names: str) -> list[tuple[Score, ...]]:
    """Return the different teachers' scores in these metrics: one if all runs share teacher and prompts."""
    scores = [tuple(item.run.teacher.get(name, Score(None)) for name in names) for item in shown]
    known = [row for row in scores if all(score.mean is not None for score in row)]
    return list({tuple(score.mean for score in row): row for row in known}.values())


def _teacher_rows(shown: Sequence[ShownRun]) -> list[tuple[str, dict[str, Score]]]:
    """Return (name, scores) of each different teacher; several teachers are named by their runs."""
    rows: dict[frozenset, tuple[list[str], dict[str, Score]]] = {}
    for item in shown:
        if teacher := item.run.teacher:
            means = frozenset((name, score.mean) for name, score in teacher.items())
            rows.setdefault(means, ([], teacher))[0].append(item.run.name)
    return [(f"teacher of {', '.join(runs)}" if len(rows) > 1 else "teacher", scores) for runs, scores in rows.values()]


def _score_plots(shown: Sequence[ShownRun], metrics: Sequence[Metric], labels: dict[str, str]) -> list[Plot]:
    """Return one plot per metric."""
    drawn = []
    for index, metric in enumerate(metric for metric in metrics if not metric.rescaled):
        curves, texts = [], []
        for item in shown:
            scores = [(r["step"], score_of(r, metric)) for r in item.run.comparable if metric.name in r]
            if any(score.mean is not None for _, score in scores):
                steps = plots.as_array([step for step, _ in scores])
                values, low, high = (
                    plots.as_array([getattr(score, part) for _, score in scores]) for part in ("mean", "low", "high")
                )
                curves.append(plots.Curve(item.key, item.style, steps, values, low, high))
                texts.append(f"{item.run.name} {tables.number(scores[-1][1].mean)} at step {scores[-1][0]}")
        if not curves:
            continue
        teachers = [score for (score,) in _teachers(shown, metric.name)]
        texts += [f"teacher {tables.number(score.mean)}" for score in teachers]
        svg = plots.plot_score(f"score{index}", curves, teachers)
        label = labels[metric.name]
        alt = f"{label} over steps: {'; '.join(texts)}."
        drawn.append(Plot(label, Markup(svg), alt, explanations.score_curve(metric)))
    return drawn


def _plane_plots(shown: Sequence[ShownRun], metrics: Sequence[Metric], labels: dict[str, str]) -> dict[str, list[Plot]]:
    """Return label of a preference -> its plots against each diversity."""
    diversities = [metric for metric in metrics if metric.diversity]
    preferences = [metric for metric in metrics if not metric.diversity and not metric.rescaled]
    drawn: dict[str, list[Plot]] = {}
    for index, (preference, diversity) in enumerate((y, x) for y in preferences for x in diversities):
        paths = []
        for item in shown:
            points = [(score_of(r, diversity), score_of(r, preference)) for r in item.run.comparable]
            points = [(x, y) for x, y in points if x.mean is not None and y.mean is not None]
            if points:
                paths.append(plots.PlanePath(item.key, item.style, points))
        if not paths:
            continue
        x_label, y_label = labels[diversity.name], labels[preference.name]
        teachers = _teachers(shown, diversity.name, preference.name)
        svg = plots.plot_plane(f"plane{index}", (x_label, y_label), paths, teachers)
        title = f"{y_label} against {x_label}"
        alt = f"{title}, a path over the evaluations for each run, and the teacher's point."
        drawn.setdefault(y_label, []).append(Plot(title, Markup(svg), alt))
    return drawn


def _training_plots(shown: Sequence[ShownRun]) -> list[Plot]:
    """Return one plot per metric of an update, student updates first, and losses before other metrics."""
    pairs = dict.fromkeys(
        (record["turn"], name)
        for item in shown
        for record in item.run.updates
        for name, value in record.items()
        if name not in _NOT_PLOTTED and isinstance(value, (int, float))
    )
    drawn = []
    for index, (kind, name) in enumerate(sorted(pairs, key=lambda pair: (pair[0] != "student", "loss" not in pair[1]))):
        curves = []
        for item in shown:
            records = [record for record in item.run.updates if record["turn"] == kind and name in record]
            if records:
                steps, values = (plots.as_array([record[key] for record in records]) for key in ("step", name))
                curves.append(plots.Curve(item.key, item.style, steps, values))
        title, about = explanations.curve(kind, name)
        svg = plots.plot_training(f"training{index}", curves)
        alt = f"{title} over steps, of {counted(len(curves), 'run')}."
        drawn.append(Plot(title, Markup(svg), alt, about))
    return drawn
