"""Write a report, and keep the report of a training run up to date."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dpdmd.run_folder import RunFolder
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.error_lines import unreadable
from dpdmd.utils.library_settings import check_import
from dpdmd.utils.logging import logger
from dpdmd.utils.paths import distinct_names


def write(folders: Sequence[Path], out: Path) -> None:
    """Write the report of run folders and of sweeps' folders, which stand for all of their runs.

    Raises:
        ValueError: a folder is neither or cannot be read, a sweep has no run, or matplotlib cannot read MPLBACKEND.
        OSError: `out` cannot be written.
    """
    write_text(out, render_report(folders))


def render_report(folders: Sequence[Path]) -> str:
    """Return the page that `write` writes.

    Raises:
        ValueError: a folder is neither a run's nor a sweep's or cannot be read, a sweep has no run, or matplotlib
            cannot read MPLBACKEND.
    """
    check_import("MPLBACKEND", "matplotlib")
    # Imported here, since matplotlib takes half a second to import.
    from dpdmd.report.page import render
    from dpdmd.report.runs import RunEntry, read_runs
    from dpdmd.report.sweeps import is_sweep, read_results

    entries, sweeps = [], []
    try:
        folders = list({os.path.realpath(folder): folder for folder in folders}.values())
        several = [folder for folder in folders if is_sweep(folder)]
        names = dict(zip(several, distinct_names(several), strict=True))
        for folder in folders:
            style = max((entry.style + 1 for entry in entries), default=0)
            if folder in names:
                sweeps.append(read_results(folder, style, f"{names[folder]}: " if len(names) > 1 else ""))
                entries += sweeps[-1].runs
            else:
                entries.append(RunEntry(folder, style=style))
        runs = read_runs(entries)
    except OSError as error:
        raise ValueError(unreadable(error)) from None
    return render(runs, sweeps)


def refresh(folder: RunFolder) -> None:
    """Write the report of a training run. Any error is only a warning, so that training goes on."""
    try:
        write([folder.root], folder.report)
    except Exception as error:  # the page can be written at any time; days of training cannot be repeated
        logger.warning("no report was written: %s: %s", type(error).__name__, error)


@contextmanager
def written_at_the_end(folder: RunFolder, *, active: bool) -> Iterator[None]:
    """Refresh the report when the block ends, also after an error, if `active` (rank 0)."""
    try:
        yield
    finally:
        if active:
            refresh(folder)
