"""The tables of the report: options, environment, time and memory. Cells are text that is not escaped yet."""

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

DASH = "–"
UNKNOWN = object()  # value of an option that a version does not have
# Output paths always differ between runs, which is of no interest.
_OUTPUTS = {
    *("run_dir", "log_path", "ckpt_dir", "eval_dir", "process_folder_name", "diversity_folder_name"),
    "resume_from_checkpoint",
}


def number(value: float | None) -> str:
    """Format with four significant digits."""
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:#.4g}".rstrip(".").replace("-", "−")


def interval(score: Score) -> str:
    """Format the 95% interval; "" if there is none."""
    return "" if score.low is None else f"{number(score.low)} – {number(score.high)}"


def share(score: Score, teacher: Score | None) -> str:
    """Format a score as a percentage of the teacher's, such as "96%"; "" if one of them is unknown."""
    known = teacher is not None and teacher.mean and score.mean is not None
    return f"{100 * score.mean / teacher.mean:.0f}%" if known else ""


def breakable(name: str) -> Markup:
    """Allow line breaks in a name after the characters that join its words."""
    return Markup(re.sub(r"([_.,/=-])(?=\w)", r"\1<wbr>", str(escape(name))))


def duration(seconds: float) -> str:
    """Format with two units: 2 h 05 min, 3 min 20 s, 41 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{seconds:.3g} s"


def _as_yaml(value: Any) -> str:
    """Format an option's value as in YAML."""
    if value is UNKNOWN:
        return "no such option"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Option:
    """One row of a configuration table: the default of this version, and each run's value."""

    group: str
    name: str
    help: str
    default: str
    values: list[str]
    differs: bool


def options(runs: Sequence[Run]) -> list[Option]:
    """Return every option of this version, then the options that only the runs' versions have.

    `differs`: between the runs; for a single run, from the default.
    """
    known = [
        (group.name, item.name, item.metadata["help"], item.default)
        for group in fields(Config)
        for item in fields(getattr(Config(), group.name))
    ]
    names = {name for _, name, _, _ in known}
    others = dict.fromkeys(name for run in runs for name in run.config if name not in names)
    known += [("other", name, "", UNKNOWN) for name in others]
    rows = []
    for group, name, help_, default in known:
        # Compared as text, since YAML reads 1e-5 as text.
        values = [_as_yaml(run.config.get(name, UNKNOWN)) for run in runs]
        compared = {_as_yaml(default), *values} if len(runs) == 1 else set(values)
        differs = name not in _OUTPUTS and len(compared) > 1
        rows.append(Option(group, name, help_, _as_yaml(default), values, differs))
    return rows


def by_group(rows: Sequence[Option]) -> list[tuple[str, list[Option]]]:
    return [(group, list(members)) for group, members in groupby(rows, key=lambda row: row.group)]


def environment(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return (property, value of each run), devices before versions."""
    flat = []
    for run in runs:
        versions = run.environment.get("versions")
        plain = {name: value for name, value in run.environment.items() if not isinstance(value, (dict, list))}
        flat.append({**plain, **(versions if isinstance(versions, dict) else {})})
    names = dict.fromkeys(name for values in flat for name in values)
    return [(name, [str(values.get(name, DASH)) for values in flat]) for name in names]


@dataclass(frozen=True)
class Cost:
    """Time and memory of a run, summed over its records.

    Attributes:
        updates: kind of update, "fake" or "student" -> number of updates.
        seconds: "fake updates", "student updates" or "evaluation" -> seconds.
        medians: kind of update -> median seconds per update.
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


def cost(run: Run) -> Cost:
    """Sum up the time and memory in a run's records."""
    times: dict[str, list[float]] = {kind: [] for kind in sorted({record["turn"] for record in run.updates})}
    for record in run.updates:
        times[record["turn"]].append(_number_of(record, "seconds"))
    seconds = {f"{kind} updates": sum(values) for kind, values in times.items()}
    if run.evaluations:
        seconds["evaluation"] = sum(_number_of(record, "seconds") for record in run.evaluations)
    rates, memory = (
        [value for record in run.updates if (value := _number_of(record, name))]
        for name in ("samples_per_second", "memory_gb")
    )
    return Cost(
        updates={kind: len(values) for kind, values in times.items()},
        seconds=seconds,
        medians={kind: median(values) for kind, values in times.items()},
        samples_per_second=median(rates) if rates else None,
        memory_gb=max(memory, default=None),
        skipped=sum(bool(record.get("skipped")) for record in run.updates),
    )


def _number_of(record: dict[str, Any], name: str) -> float:
    """Return a number of a record; 0 if it is missing or not finite."""
    value = record.get(name)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else 0.0
