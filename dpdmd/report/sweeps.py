"""Read the output folder of a sweep (`dpdmd.compare`) for a report: its table, its plane and its runs."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpdmd.report.runs import RunEntry, is_run
from dpdmd.utils.paths import same_place
from dpdmd.utils.tables import read_markdown_row
from dpdmd.utils.text_files import read_json

_SEED = re.compile(r"seed_(\d+)")


@dataclass(frozen=True)
class Table:
    """A table of table.md: the first row, and the others. Cells are plain text."""

    header: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class SweepResult:
    """A sweep's folder.

    Attributes:
        name: of its folder.
        title: of the sweep file.
        blocks: paragraphs and tables of table.md, in their order.
        plane: plane.png, or None if the sweep has none.
        runs: its runs, by configuration in the table's order, then by seed.
        warnings: one line for each part that is missing.
    """

    name: str
    title: str
    blocks: list[str | Table]
    plane: Path | None
    runs: list[RunEntry]
    warnings: list[str]


def is_sweep(folder: Path) -> bool:
    """Return whether a folder is the output folder of a sweep."""
    return (folder / "runs").is_dir() and not is_run(folder)


def read_results(root: Path, first_style: int = 0, prefix: str = "") -> SweepResult:
    """Read a sweep's folder. Rows that are not trained are only in its tables.

    Args:
        first_style: style of the first trained configuration. With 0, the runs have the colours of plane.png.
        prefix: of the runs' labels.

    Raises:
        ValueError: no run of the sweep is there.
    """
    warnings: list[str] = []
    title, blocks = root.name, []
    try:
        title, blocks = _read_table(root / "table.md")
    except (OSError, UnicodeDecodeError):
        warnings.append("table.md cannot be read: no model is measured yet, or the file was moved")
    runs = _find_runs(root, first_style, prefix, warnings)
    if not runs:
        raise ValueError(f"{root}: is a sweep without a run (runs/*/seed_*/run); train one first")
    plane = root / "plane.png"
    return SweepResult(root.resolve().name, title, blocks, plane if plane.is_file() else None, runs, warnings)


def _find_runs(root: Path, first_style: int, prefix: str, warnings: list[str]) -> list[RunEntry]:
    by_name: dict[str, list[tuple[int, Path]]] = {}
    for folder in (root / "runs").glob("*/seed_*"):
        if match := _SEED.fullmatch(folder.name):
            by_name.setdefault(folder.parent.name, []).append((int(match[1]), folder))
    order = {name: place for place, name in enumerate(_configurations(root))}
    runs = []
    for index, name in enumerate(sorted(by_name, key=lambda name: (order.get(name, len(order)), name))):
        for member, (seed, folder) in enumerate(sorted(by_name[name])):
            label = f"{prefix}{name}, seed {seed}"
            run = _run_of(folder)
            if run is None:
                warnings.append(f"{label}: its run folder is not there")
            else:
                runs.append(RunEntry(run, label, first_style + index, member))
    return runs


def _configurations(root: Path) -> list[str]:
    """Return the names of the table's rows in their order; none if table.csv cannot be read."""
    try:
        with (root / "table.csv").open(encoding="utf-8", newline="") as file:
            return list(dict.fromkeys(row["configuration"] for row in csv.DictReader(file)))
    except (OSError, UnicodeDecodeError, KeyError, csv.Error):
        return []


def _run_of(folder: Path) -> Path | None:
    """Return the run of a configuration and seed: trained here, or for `--reuse` in the folder of another sweep."""
    own = folder / "run"
    if is_run(own):
        return own
    for record in sorted(folder.glob("*.json")):
        try:
            model = read_json(record)["asked"]["model"]
        except (ValueError, KeyError, TypeError):
            continue
        if isinstance(model, str) and is_run(Path(model)) and not same_place(model, str(own)):
            return Path(model)
    return None


def _read_table(path: Path) -> tuple[str, list[str | Table]]:
    """Return the title, and the paragraphs and tables of table.md.

    Raises:
        OSError, UnicodeDecodeError: the file cannot be read.
    """
    title, *parts = path.read_text(encoding="utf-8").strip().split("\n\n")
    return title.removeprefix("# "), [_block(part.strip().splitlines()) for part in parts]


def _block(lines: Sequence[str]) -> str | Table:
    if not lines or not lines[0].startswith("|"):
        return " ".join(lines).replace("`", "")
    header, _, *rows = [read_markdown_row(line) for line in lines] if len(lines) > 1 else [[], []]
    return Table(header, rows)
