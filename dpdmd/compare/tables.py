"""One table of a sweep: means over seeds, tests against the baseline, and the paper's numbers beside ours."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dpdmd.compare.figures import Figure
from dpdmd.compare.sweep import Sweep
from dpdmd.evaluation.statistics import Difference, SeedMean, mean_over_seeds, paired_difference
from dpdmd.utils.tables import latex_table, latex_text, markdown_table

# Seed of training (None: not trained) -> column -> figure.
Runs = Mapping[int | None, Mapping[str, Figure]]
LEGEND = """\
± is the half width of the 95% t interval over seeds of training; a model that was not trained has none. A difference is
paired by seed; its first p is a t test over seeds (would other trainings differ?), its second a sign-flip test over
prompts of the models' means (would other prompts tell the same?). Neither is corrected for the number of comparisons.\
"""


@dataclass(frozen=True)
class Cell:
    """One metric of one configuration.

    Attributes:
        by_seed: seed -> value.
        mean: None if nothing is there yet.
        difference: from the baseline; None for the baseline itself.
    """

    by_seed: dict[int | None, float]
    mean: SeedMean | None
    paper: float | None
    difference: Difference | None


Table = dict[str, dict[str, Cell]]  # configuration -> column -> cell


def compare(sweep: Sweep, results: Mapping[str, Runs]) -> Table:
    """The table of all that is finished: `results` is configuration -> its finished runs."""
    return {
        name: {
            column: _cell(
                results.get(name, {}),
                results.get(sweep.baseline or "", {}),
                column,
                paper=c.paper.get(column),
                is_baseline=name == sweep.baseline,
            )
            for column in sweep.columns
        }
        for name, c in sweep.configurations.items()
    }


def _cell(runs: Runs, baseline: Runs, column: str, *, paper: float | None, is_baseline: bool) -> Cell:
    values = {seed: run[column].mean for seed, run in runs.items() if run[column].mean is not None}
    mean = mean_over_seeds(list(values.values())) if values else None
    return Cell(values, mean, paper, None if is_baseline else _difference(runs, baseline, column))


def _difference(ours: Runs, theirs: Runs, column: str) -> Difference | None:
    """Paired by seed; a model that was not trained is the same one beside every seed of the other."""
    pairs = [
        (a[column], b[column])
        for seed, a in ours.items()
        for other, b in theirs.items()
        if (seed == other or None in (seed, other)) and None not in (a[column].mean, b[column].mean)
    ]
    if not pairs:
        return None
    shared = [prompt for prompt in pairs[0][0].by_prompt if all(prompt in f.by_prompt for pair in pairs for f in pair)]
    by_prompt = [float(np.mean([a.by_prompt[prompt] - b.by_prompt[prompt] for a, b in pairs])) for prompt in shared]
    return paired_difference([a.mean - b.mean for a, b in pairs], by_prompt)


def markdown(sweep: Sweep, table: Table, head: str) -> str:
    """Title, `head`, the means, the differences from the baseline, and what the figures are."""
    parts = [
        f"# {sweep.title}",
        head,
        _grid(sweep, {name: [_shown(c) for c in r.values()] for name, r in table.items()}),
    ]
    if sweep.baseline:
        rows = {n: [_shown_difference(c) for c in r.values()] for n, r in table.items() if n != sweep.baseline}
        parts += [f"Minus {sweep.baseline}:", _grid(sweep, rows)]
    return "\n\n".join([*parts, LEGEND]) + "\n"


def _grid(sweep: Sweep, rows: Mapping[str, list[str]]) -> str:
    return markdown_table(["", *sweep.columns], [[name, *cells] for name, cells in rows.items()])


def _shown(cell: Cell) -> str:
    ours = "–" if cell.mean is None else str(cell.mean)
    return ours if cell.paper is None else f"{ours} (paper {cell.paper:.3f})"


def _shown_difference(cell: Cell) -> str:
    if cell.difference is None:
        return "–"
    tests = ", ".join("–" if p is None else _p(p) for p in (cell.difference.p_seeds, cell.difference.p_prompts))
    sign = "+" if cell.difference.over_seeds.mean >= 0 else ""
    return f"{sign}{cell.difference.over_seeds}; p {tests}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< .001"


def as_csv(table: Table) -> str:
    """One line a configuration and column, every seed's value included."""
    seeds = sorted(
        {seed for row in table.values() for cell in row.values() for seed in cell.by_seed if seed is not None}
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "configuration",
            "metric",
            "num_seeds",
            "mean",
            "margin",
            "paper",
            "difference",
            "difference_margin",
            "p_seeds",
            "p_prompts",
            *(f"seed_{seed}" for seed in seeds),
        ]
    )
    for name, row in table.items():
        for column, cell in row.items():
            mean, difference = cell.mean, cell.difference
            known = mean and [mean.num_seeds, mean.mean, mean.margin]
            over = difference and [
                difference.over_seeds.mean,
                difference.over_seeds.margin,
                difference.p_seeds,
                difference.p_prompts,
            ]
            values = [*(known or [0, None, None]), cell.paper, *(over or [None] * 4), *map(cell.by_seed.get, seeds)]
            writer.writerow([name, column, *("" if value is None else format(value, ".9g") for value in values)])
    return text.getvalue()


def latex(sweep: Sweep, table: Table) -> str:
    """A table for booktabs, with caption and label; the paper's number in brackets behind ours.

    No value is set bold: a sweep does not say of which columns more is better.
    """
    rows = ([latex_text(name), *map(_latex_cell, row.values())] for name, row in table.items())
    header = ["", *map(latex_text, sweep.columns)]
    return latex_table(f"{latex_text(sweep.title)}.", sweep.path.stem, header, rows)


def _latex_cell(cell: Cell) -> str:
    ours = "--" if cell.mean is None else f"${cell.mean}$".replace("±", r"\pm")
    return ours if cell.paper is None else f"{ours} ({cell.paper:.3f})"
