"""Compute and format the table of a sweep: means over seeds, tests against the baseline, and the paper's numbers."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dpdmd.compare.metrics import MeasuredMetric
from dpdmd.compare.sweep import Sweep
from dpdmd.evaluation.statistics import Difference, SeedMean, mean_over_seeds, paired_difference
from dpdmd.utils.tables import latex_table, latex_text, markdown_table

# Seed of training (None: not trained) -> column -> metric.
Runs = Mapping[int | None, Mapping[str, MeasuredMetric]]
LEGEND = """\
± is half the width of the 95% t interval over training seeds; a model that was not trained has none. Differences are
paired by seed. Their first p is a t test over seeds (would other trainings differ?). Their second p is a sign-flip test
over prompts, of the means over seeds (would these models differ on other prompts?). Neither is corrected for multiple
comparisons.\
"""


@dataclass(frozen=True)
class Cell:
    """One metric of one configuration.

    Attributes:
        by_seed: seed -> value.
        mean: None if no value exists yet.
        difference: from the baseline; None for the baseline itself.
    """

    by_seed: dict[int | None, float]
    mean: SeedMean | None
    paper: float | None
    difference: Difference | None


Table = dict[str, dict[str, Cell]]  # configuration -> column -> cell


def compare(sweep: Sweep, results: Mapping[str, Runs]) -> Table:
    """Return the table of the finished runs; `results` is configuration -> its finished runs."""
    baseline = results.get(sweep.baseline or "", {})
    return {
        name: {
            column: _cell(
                results.get(name, {}), None if name == sweep.baseline else baseline, column, row.paper.get(column)
            )
            for column in sweep.columns
        }
        for name, row in sweep.configurations.items()
    }


def _cell(runs: Runs, baseline: Runs | None, column: str, paper: float | None) -> Cell:
    values = {seed: run[column].mean for seed, run in runs.items() if run[column].mean is not None}
    mean = mean_over_seeds(list(values.values())) if values else None
    return Cell(values, mean, paper, None if baseline is None else _difference(runs, baseline, column))


def _difference(runs: Runs, baseline: Runs, column: str) -> Difference | None:
    """Return the differences paired by seed; a model that was not trained is paired with every seed."""
    pairs = [
        (a[column], b[column])
        for seed, a in runs.items()
        for other, b in baseline.items()
        if (seed == other or None in (seed, other)) and None not in (a[column].mean, b[column].mean)
    ]
    if not pairs:
        return None
    shared = [prompt for prompt in pairs[0][0].by_prompt if all(prompt in m.by_prompt for pair in pairs for m in pair)]
    by_prompt = [float(np.mean([a.by_prompt[prompt] - b.by_prompt[prompt] for a, b in pairs])) for prompt in shared]
    return paired_difference([_gap(a, b) for a, b in pairs], by_prompt)


def _gap(one: MeasuredMetric, other: MeasuredMetric) -> float:
    """Return the difference of two means, over the prompts that both have if a score is missing."""
    shared = one.by_prompt.keys() & other.by_prompt.keys()
    if not shared or one.by_prompt.keys() == other.by_prompt.keys():
        return one.mean - other.mean
    return float(np.mean([one.by_prompt[prompt] - other.by_prompt[prompt] for prompt in sorted(shared)]))


def as_markdown(sweep: Sweep, table: Table, head: str) -> str:
    """Return title, `head`, the means, the differences from the baseline, and the legend."""
    means = {name: [_mean_text(cell) for cell in row.values()] for name, row in table.items()}
    parts = [f"# {sweep.title}", head, _grid(sweep, means)]
    if sweep.baseline:
        rows = {n: [_difference_text(c) for c in row.values()] for n, row in table.items() if n != sweep.baseline}
        parts += [f"Minus {sweep.baseline}:", _grid(sweep, rows)]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def _grid(sweep: Sweep, rows: Mapping[str, list[str]]) -> str:
    return markdown_table(["", *sweep.columns], [[name, *cells] for name, cells in rows.items()])


def _mean_text(cell: Cell) -> str:
    mean = "–" if cell.mean is None else str(cell.mean)
    return mean if cell.paper is None else f"{mean} (paper {cell.paper:.3f})"


def _difference_text(cell: Cell) -> str:
    if cell.difference is None:
        return "–"
    tests = ", ".join("–" if p is None else _p_text(p) for p in (cell.difference.p_seeds, cell.difference.p_prompts))
    sign = "+" if cell.difference.over_seeds.mean >= 0 else ""
    return f"{sign}{cell.difference.over_seeds}; p {tests}"


def _p_text(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< .001"


def as_csv(table: Table) -> str:
    """Return one line per configuration and column, with the value of every seed."""
    seeds = sorted(
        {seed for row in table.values() for cell in row.values() for seed in cell.by_seed if seed is not None}
    )
    names = ["configuration", "metric", "num_seeds", "mean", "margin", "paper"]
    names += ["difference", "difference_margin", "p_seeds", "p_prompts", *(f"seed_{seed}" for seed in seeds)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for name, row in table.items():
        for column, cell in row.items():
            mean, diff = cell.mean, cell.difference
            values = [0, None, None] if mean is None else [mean.num_seeds, mean.mean, mean.margin]
            values.append(cell.paper)
            values += (
                [diff.over_seeds.mean, diff.over_seeds.margin, diff.p_seeds, diff.p_prompts] if diff else [None] * 4
            )
            values += map(cell.by_seed.get, seeds)
            writer.writerow([name, column, *("" if value is None else format(value, ".9g") for value in values)])
    return text.getvalue()


def as_latex(sweep: Sweep, table: Table) -> str:
    """Return a booktabs table with caption and label; the paper's number follows ours in brackets.

    No value is bold, since a sweep does not state in which columns higher is better.
    """
    rows = ([latex_text(name), *map(_latex_cell, row.values())] for name, row in table.items())
    header = ["", *map(latex_text, sweep.columns)]
    return latex_table(f"{latex_text(sweep.title)}.", sweep.path.stem, header, rows)


def _latex_cell(cell: Cell) -> str:
    mean = "--" if cell.mean is None else f"${cell.mean}$".replace("±", r"\pm")
    return mean if cell.paper is None else f"{mean} ({cell.paper:.3f})"
