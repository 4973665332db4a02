"""`python -m dpdmd.report RUN [RUN ...] [--out FILE]`: write one HTML page that compares runs with their teacher.

A RUN may be the output folder of a sweep (`dpdmd.compare`): the page then has all its runs, its table and its plane.

The page is self-contained: it needs no network and no other file. Training writes the page of a single run as
RUN/report.html. Exit status: 0 done; 1 a run cannot be read to its end; 2 wrong input.
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.report")

import sys
from collections.abc import Sequence
from pathlib import Path

from dpdmd.report.writer import render_report
from dpdmd.run_folder import RunFolder
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.paths import user_path
from dpdmd.utils.programs import make_parser, run_program
from dpdmd.utils.text_files import require_regular


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report and return the exit status."""
    parser = make_parser("dpdmd.report", __doc__)
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="run folder, or a sweep's folder")
    parser.add_argument(
        "--out", type=user_path, help="file (default: RUN/report.html of a single run or sweep, else ./report.html)"
    )
    args = parser.parse_args(argv)
    out = args.out or (RunFolder.of(args.runs[0]).report if len(args.runs) == 1 else Path("report.html"))
    return run_program("dpdmd.report", lambda: _write(args.runs, out))


def _write(runs: Sequence[Path], out: Path) -> None:
    page = render_report(runs)
    try:
        _check_out(out)
        write_text(out, page)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be written ({error.strerror})") from None
    sys.stdout.write(f"{out}\n")


def _check_out(out: Path) -> None:
    """Check that the report replaces no file but an HTML page: `--out RUN/metrics.jsonl` would end the run's records.

    Raises:
        ValueError: one line that names --out.
        OSError: it is not a regular file, or cannot be read.
    """
    if not out.exists():
        return
    require_regular(out)
    with out.open("rb") as file:
        head = file.read(1024).lstrip().lower()
    if head and not head.startswith((b"<!doctype html", b"<html")):
        raise ValueError(f"--out {out}: exists and is no HTML page; give another file")


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
