"""Write a report, and keep the report of a training run up to date."""

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
        ValueError: a folder is not a run folder.
        OSError: `out` cannot be written.
    """
    # Imported here, since matplotlib takes half a second to import.
    from dpdmd.report.page import render
    from dpdmd.report.runs import read_runs

    write_text(out, render(read_runs(folders)))


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
