"""`python -m dpdmd.report RUN [RUN ...] [--out FILE]`: runs beside each other and their teacher, on one HTML page.

The page needs no network and no other file. Every run keeps one of its own as RUN/report.html. Exit status: 0 done,
2 wrong input.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dpdmd.run_folder import RunFolder
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.paths import user_path
from dpdmd.utils.text_files import one_line

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


def main(argv: Sequence[str] | None = None) -> int:
    """Report; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="dpdmd.report",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="run folder")
    parser.add_argument("--out", type=user_path, help="file (default: RUN/report.html, of several runs ./report.html)")
    args = parser.parse_args(argv)
    out = args.out or (RunFolder.of(args.runs[0]).report if len(args.runs) == 1 else Path("report.html"))
    try:
        write(args.runs, out)
    except ValueError as error:
        print(f"dpdmd.report: error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"dpdmd.report: error: --out {out}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    sys.stdout.write(f"{out}\n")
    return 0
