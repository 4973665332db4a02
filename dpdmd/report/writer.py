"""Write a report, and keep a run's own report up to date."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dpdmd.run_folder import RunFolder
from dpdmd.utils.atomic_files import write_text

logger = logging.getLogger("dpdmd")


def write(folders: Sequence[Path], out: Path) -> None:
    """Write the report of these run folders.

    Raises:
        ValueError: one of them is no run folder.
        OSError: `out` cannot be written.
    """
    # matplotlib takes half a second to import: only for who wants a report.
    from dpdmd.report.page import render
    from dpdmd.report.runs import read_runs

    write_text(out, render(read_runs(folders)))


def refresh(folder: RunFolder) -> None:
    """Write a run's own report, from within it: whatever goes wrong is a warning, and training goes on."""
    try:
        write([folder.root], folder.report)
    except Exception as error:  # days of training are worth more than a page that can be made at any time
        logger.warning("no report was written: %s: %s", type(error).__name__, error)


@contextmanager
def written_at_the_end(folder: RunFolder, *, active: bool) -> Iterator[None]:
    """Refresh the report where `active` (rank 0) when the run ends, however it ends."""
    try:
        yield
    finally:
        if active:
            refresh(folder)
