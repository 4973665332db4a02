"""What is left of a sweep: table.md, table.csv, table.tex, plane.png and picture.png, of all that is finished."""

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpdmd.compare.figures import Figure, read_figures
from dpdmd.compare.jobs import Job
from dpdmd.compare.plane import draw_plane
from dpdmd.compare.sample_grid import draw
from dpdmd.compare.sweep import Sweep
from dpdmd.compare.tables import as_csv, compare, latex, markdown
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.versions import versions


@dataclass(frozen=True)
class Written:
    """What became of the results.

    Attributes:
        text: the table in Markdown.
        problems: a line about each result that is missing or cannot be read, and about a plane that is not there.
    """

    text: str
    problems: list[str]


def write(sweep: Sweep, jobs: Sequence[Job], out: Path, command: str) -> Written:
    """Write the tables, then the plane; a figure that is not there leaves its cell empty.

    Raises:
        OSError: the tables cannot be written.
    """
    finished = [job for job in jobs if job.is_done()]
    results: dict[str, dict[int | None, dict[str, Figure]]] = {}
    problems: list[str] = []
    for job in finished:
        results.setdefault(job.configuration, {})[job.seed] = _figures(sweep, job, problems)
    table = compare(sweep, results)
    text = markdown(sweep, table, _head(jobs, finished, command))
    write_text(out / "table.md", text)
    write_text(out / "table.csv", as_csv(table))
    write_text(out / "table.tex", latex(sweep, table))
    if sweep.plane:
        try:
            draw_plane(sweep, table, out / "plane.png")
        except Exception as error:  # whatever a drawing library raises, the table is worth more
            problems.append(f"plane.png: {type(error).__name__}: {shorten_error(error)}")
    return Written(text, problems)


def draw_sample_grid(sweep: Sweep, jobs: Sequence[Job], out: Path) -> list[str]:
    """Sample the finished rows of the sweep's picture, unless that was done since they were finished.

    Returns:
        A line about a model that cannot be sampled, or a picture that cannot be written; none if all is well.
    """
    finished = [job for job in jobs if job.is_done()]
    first = {job.configuration: job.model for job in reversed(finished)}  # of its first seed
    models = {name: first[name] for name in sweep.picture.rows if name in first} if sweep.picture else {}
    try:
        if models and not _is_newer(out / "picture.png", [sweep.path, *_records(finished)]):
            draw(sweep.picture, models, out / "picture.png")
    except (OSError, ValueError) as error:
        return [f"picture.png: {error}"]
    return []


def _records(jobs: Sequence[Job]) -> list[Path]:
    return [stage.record for job in jobs for stage in job.stages]


def _is_newer(path: Path, sources: Sequence[Path]) -> bool:
    return path.is_file() and path.stat().st_mtime > max(source.stat().st_mtime for source in sources)


def _figures(sweep: Sweep, job: Job, problems: list[str]) -> dict[str, Figure]:
    """Column -> figure of one finished job; what is missing is empty and told in `problems`."""
    found = {column: Figure(None, {}) for column in sweep.columns}
    for name, measure in sweep.measures.items():
        path = job.folder / name / measure.result
        try:
            figures = read_figures(path)
        except ValueError as error:
            problems.append(str(error))
            continue
        for column, metric in measure.metrics.items():
            if metric in figures:
                found[column] = figures[metric]
            else:
                problems.append(
                    f"{sweep.path}: measure {name}: no {metric!r} in {path}; there are {', '.join(figures)}"
                )
    return found


def _head(jobs: Sequence[Job], finished: Sequence[Job], command: str) -> str:
    """Date, command, machine and versions, and what is not there yet."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    lines = [
        f"{datetime.date.today().isoformat()}, `{command}`",
        f"{machine}; " + ", ".join(f"{name} {version}" for name, version in versions().items()),
    ]
    if missing := [job.label for job in jobs if job not in finished]:
        lines.append(f"Not finished: {'; '.join(missing)}.")
    return "\n\n".join(lines)
