"""Runs as the report shows them."""

from dataclasses import dataclass, replace

from dpdmd.report import tables
from dpdmd.report.runs import Run
from dpdmd.report.style import EMA_DASH, Style


@dataclass(frozen=True)
class ShownRun:
    """A run, or the moving average of a run, as the report shows it.

    Attributes:
        key: names the run in ids and classes; a moving average has the key of its run.
        average: whether it is a moving average, which has only evaluations.
    """

    key: str
    style: Style
    run: Run
    cost: tables.Cost
    average: bool = False


def average(item: ShownRun) -> list[ShownRun]:
    """Return the moving average of a run, if it was evaluated: the run's colour and marker with other dashes."""
    run = item.run.of_average()
    style = replace(item.style, dash=EMA_DASH)
    return [replace(item, run=run, style=style, cost=tables.cost(run), average=True)] if run else []
