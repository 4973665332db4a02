"""The report's tables: figures, differences of configuration, environment, time. Cells are text, not yet escaped."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from statistics import median
from typing import Any

from markupsafe import Markup, escape

from dpdmd.config import Config
from dpdmd.report.runs import Run
from dpdmd.report.scores import Score

NONE = "–"
UNSET = object()  # an option that the run's version did not have
# Where a run writes is its own: it differs always, and says nothing.
_PLACES = {
    *("run_dir", "log_path", "ckpt_dir", "eval_dir", "process_folder_name", "diversity_folder_name"),
    "resume_from_checkpoint",
}


def number(value: float | None) -> str:
    """Four digits that count."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:#.4g}".rstrip(".").replace("-", "−")


def interval(score: Score) -> str:
    """The 95% interval, "" where there is none."""
    return "" if score.low is None else f"{number(score.low)} – {number(score.high)}"


def share(score: Score, teacher: Score | None) -> str:
    """How much of the teacher's that is: "96%"; "" where one of them is not known."""
    known = teacher is not None and teacher.mean and score.mean is not None
    return f"{100 * score.mean / teacher.mean:.0f}%" if known else ""


def breakable(name: str) -> Markup:
    """A name that may break after what joins its words, and nowhere else."""
    return Markup(re.sub(r"([_.,/=-])(?=\w)", r"\1<wbr>", str(escape(name))))


def duration(seconds: float) -> str:
    """To two units: 2 h 05 min, 3 min 20 s, 41 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{seconds:.3g} s"


def shown(value: Any) -> str:
    """An option's value as it would be written in YAML."""
    if value is UNSET:
        return "not an option then"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Option:
    """One row of a configuration table: a default of this version, and each run's value."""

    group: str
    name: str
    help: str
    default: str
    values: list[str]
    differs: bool


def options(runs: Sequence[Run]) -> list[Option]:
    """Every option of this version, then those that only the runs know.

    `differs`: between the runs, or where there is one run alone from the default.
    """
    known = [
        (group.name, item.name, item.metadata["help"], item.default)
        for group in fields(Config)
        for item in fields(getattr(Config(), group.name))
    ]
    names = {name for _, name, _, _ in known}
    others = dict.fromkeys(name for run in runs for name in run.config if name not in names)
    known += [("other", name, "", UNSET) for name in others]
    rows = []
    for group, name, help_, default in known:
        values = [run.config.get(name, UNSET) for run in runs]
        compared = [default, *values] if len(runs) == 1 else values
        # Compared as shown: YAML reads 1e-5 as text, and what looks the same is the same.
        differs = name not in _PLACES and len(set(map(shown, compared))) > 1
        rows.append(Option(group, name, help_, shown(default), [shown(value) for value in values], differs))
    return rows


def by_group(rows: Sequence[Option]) -> list[tuple[str, list[Option]]]:
    return [(group, list(members)) for group, members in groupby(rows, key=lambda row: row.group)]


def environment(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(what, each run's), devices first; a row that nobody has is left out."""
    flat = []
    for run in runs:
        versions = run.environment.get("versions")
        plain = {name: value for name, value in run.environment.items() if not isinstance(value, (dict, list))}
        flat.append({**plain, **(versions if isinstance(versions, dict) else {})})
    names = dict.fromkeys(name for values in flat for name in values)
    return [(name, [str(values.get(name, NONE)) for values in flat]) for name in names]


@dataclass(frozen=True)
class Spent:
    """A run's time and memory, of the steps that stand in its record.

    Attributes:
        seconds: what -> seconds; fake updates, student updates, evaluation.
        medians: turn -> seconds of an update.
    """

    updates: dict[str, int]
    seconds: dict[str, float]
    medians: dict[str, float]
    samples_per_second: float | None
    memory_gb: float | None
    skipped: int

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def spent(run: Run) -> Spent:
    """Sums over a run's records."""
    turns = sorted({record["turn"] for record in run.steps})
    times = {turn: [_plain(r.get("seconds")) for r in run.steps if r["turn"] == turn] for turn in turns}
    seconds = {f"{turn} updates": sum(values) for turn, values in times.items()}
    if run.evaluations:
        seconds["evaluation"] = sum(_plain(record.get("seconds")) for record in run.evaluations)
    rates, memory = (
        [value for record in run.steps if (value := _plain(record.get(name)))]
        for name in ("samples_per_second", "memory_gb")
    )
    return Spent(
        updates={turn: len(values) for turn, values in times.items()},
        seconds=seconds,
        medians={turn: median(values) for turn, values in times.items()},
        samples_per_second=median(rates) if rates else None,
        memory_gb=max(memory, default=None),
        skipped=sum(bool(record.get("skipped")) for record in run.steps),
    )


def _plain(value: Any) -> float:
    """A record's number; 0 for what is none."""
    return value if isinstance(value, (int, float)) and math.isfinite(value) else 0.0
