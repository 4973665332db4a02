"""Write a sweep's output files: table.md, table.csv, table.tex, plane.png and picture.png, from the finished jobs."""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpdmd.compare.cost import calls_of_training
from dpdmd.compare.jobs import TRAIN, Job
from dpdmd.compare.metrics import MeasuredMetric
from dpdmd.compare.plane import draw_plane
from dpdmd.compare.sample_grid import draw_sample_grid, shows
from dpdmd.compare.sweep import Sweep
from dpdmd.compare.tables import as_csv, as_latex, as_markdown, compare
from dpdmd.sampling.image_folder import PER_IMAGE
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.paths import expanded
from dpdmd.utils.versions import versions
from dpdmd.utils.wording import counted


@dataclass(frozen=True)
class WrittenTables:
    """The written tables.

    Attributes:
        markdown: the content of table.md.
        problems: one line per missing, incomplete or unreadable result, and one if the plane could not be drawn.
    """

    markdown: str
    problems: list[str]


def write_tables(sweep: Sweep, jobs: Sequence[Job], out: Path, command: str) -> WrittenTables:
    """Write the tables, then the plane. The cell of a missing metric is empty.

    Raises:
        OSError: the tables cannot be written.
    """
    finished = [job for job in jobs if job.is_done()]
    results: dict[str, dict[int | None, dict[str, MeasuredMetric]]] = {}
    problems: list[str] = []
    for job in finished:
        results.setdefault(job.configuration, {})[job.seed] = _read_columns(sweep, job, problems)
    table = compare(sweep, results)
    calls = _calls(sweep) if sweep.plane and sweep.plane.size else {}
    markdown = as_markdown(sweep, table, _head(jobs, finished, command, calls))
    write_text(out / "table.md", markdown)
    write_text(out / "table.csv", as_csv(table))
    write_text(out / "table.tex", as_latex(sweep, table))
    if sweep.plane:
        try:
            draw_plane(sweep, table, out / "plane.png", calls)
        except Exception as error:  # the tables are there, so any error of the plotting library is only reported
            problems.append(f"plane.png: {type(error).__name__}: {shorten_error(error)}")
    return WrittenTables(markdown, problems)


def write_sample_grid(sweep: Sweep, jobs: Sequence[Job], out: Path) -> list[str]:
    """Write picture.png from the finished rows, unless the file shows these rows and is newer than all of them.

    Returns:
        A line if a model cannot be sampled or the file cannot be written.
    """
    finished = [job for job in jobs if job.is_done()]
    first = {job.configuration: Path(expanded(str(job.model))) for job in reversed(finished)}  # of the first seed
    models = {name: first[name] for name in sweep.sample_grid.rows if name in first} if sweep.sample_grid else {}
    sources = [sweep.path, *(stage.record for job in finished for stage in job.stages)]
    path = out / "picture.png"
    try:
        if models and not (_is_newer(path, sources) and shows(path, sweep.sample_grid, models)):
            draw_sample_grid(sweep.sample_grid, models, path)
    except (OSError, ValueError) as error:
        return [f"picture.png: {error}"]
    return []


def _is_newer(path: Path, sources: Sequence[Path]) -> bool:
    return path.is_file() and path.stat().st_mtime > max(source.stat().st_mtime for source in sources)


def _read_columns(sweep: Sweep, job: Job, problems: list[str]) -> dict[str, MeasuredMetric]:
    """Return column -> metric of a finished job. A missing metric is empty and adds a line to `problems`."""
    columns = {column: MeasuredMetric(None, {}) for column in sweep.columns}
    for stage in (stage for stage in job.stages if stage.name != TRAIN):
        name, measure, path = stage.name, sweep.measures[stage.name], stage.out / stage.result
        try:
            metrics = stage.metrics()
        except ValueError as error:
            problems.append(str(error))
            continue
        for column, metric in measure.metrics.items():
            if metric in metrics:
                columns[column] = found = metrics[metric]
                if found.num_missing:
                    problems.append(
                        f"{path}: {counted(found.num_missing, 'image')} without {metric}, see {PER_IMAGE} beside "
                        f"it; {stage.to_repeat}"
                    )
            else:
                known = ", ".join(metrics)
                problems.append(f"{sweep.path}: measure {name}: no {metric!r} in {path}; there are {known}")
    return columns


def _calls(sweep: Sweep) -> dict[str, int]:
    """Return row -> network calls of a training, for the trained rows with a known number."""
    counted = {name: calls_of_training(row.resolved) for name, row in sweep.configurations.items() if not row.model}
    return {name: calls for name, calls in counted.items() if calls is not None}


def _head(jobs: Sequence[Job], finished: Sequence[Job], command: str, calls: Mapping[str, int]) -> str:
    """Return date, command, machine and versions, the unfinished jobs, and the cost of the trainings."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    lines = [
        f"{datetime.date.today().isoformat()}, `{command}`",
        f"{machine}; " + ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    if missing := [job.label for job in jobs if job not in finished]:
        lines.append(f"Not finished: {'; '.join(missing)}.")
    if calls:
        costs = ", ".join(f"{name} {number:,}" for name, number in calls.items())
        lines.append(
            f"Network calls of a training in each process, each of one sample, a backward pass as two: {costs}."
        )
    return "\n\n".join(lines)
