"""Train, measure and compare: `python -m dpdmd.compare SWEEP.yaml`.

Every configuration of the sweep is trained with every seed, then measured. The same command continues after an
interruption and skips finished work. OUT gets table.md, table.csv, table.tex and plane.png, rewritten after each model;
picture.png at the end; and runs/. Models, prompts and scorers are checked before the first process starts.
Exit status: 0 done; 1 something failed, the other results are there; 2 wrong input; 128 + its number after a signal.
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.compare")

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpdmd.compare import sweep_file
from dpdmd.compare.jobs import Job, build_jobs
from dpdmd.compare.sweep import Sweep
from dpdmd.compare.workers import Workers
from dpdmd.distributed.launch_env import check_single_process
from dpdmd.report.sweeps import read_results
from dpdmd.utils.atomic_files import clear_leftovers
from dpdmd.utils.error_lines import one_line, unreadable
from dpdmd.utils.paths import check_replaced, check_writable, user_path
from dpdmd.utils.programs import make_parser, print_error

FILES = ("table.md", "table.csv", "table.tex", "plane.png", "picture.png")  # in OUT


@dataclass(frozen=True)
class Setup:
    """A checked command line.

    Attributes:
        sweep: the rows and seeds selected by `--only` and `--seeds`.
        jobs: all jobs of `sweep`, finished ones too.
        out: the output folder.
        warning: one line about records of an older version, or "".
    """

    sweep: Sweep
    jobs: list[Job]
    out: Path
    warning: str = ""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `dpdmd.compare`."""
    parser = make_parser("dpdmd.compare", __doc__, epilog=sweep_file.__doc__)
    parser.add_argument("sweep", type=user_path, help="YAML file of the sweep, see below")
    parser.add_argument("--out", type=user_path, help="folder (default: outputs/ and the sweep's name)")
    parser.add_argument(
        "--jobs",
        type=int,
        help="models processed in parallel; on GPUs they share the first one (default: number of CPU cores; 1 on a GPU "
        "or with a launcher)",
    )
    parser.add_argument(
        "--reuse",
        nargs="+",
        action="extend",
        type=user_path,
        default=[],
        metavar="OUT",
        help="output folders of other sweeps: models trained there with the same options and seed are only measured",
    )
    several = {"nargs": "+", "action": "extend"}
    parser.add_argument("--only", **several, metavar="NAME", help="train, measure and show only these configurations")
    parser.add_argument("--seeds", **several, type=int, metavar="SEED", help="use only these of the sweep's seeds")
    return parser


def check(args: argparse.Namespace) -> Setup:
    """Read the sweep and check that finished stages were made with the same options and the same models.

    Raises:
        ValueError: one line that names the file or flag and what to do.
        OSError: a record in the output folder or in one of `--reuse` cannot be read.
    """
    sweep = sweep_file.read_sweep(args.sweep).select(args.only, args.seeds)
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: must be at least 1")
    out = args.out or Path("outputs") / args.sweep.stem
    for folder in args.reuse:
        try:
            found = (folder / "runs").is_dir()
        except OSError as error:
            raise ValueError(f"--reuse {unreadable(error)}") from None
        if not found:
            raise ValueError(f"--reuse {folder}: contains no runs/; give the --out folder of another sweep")
    check_writable("--out", out / "runs")
    check_replaced("--out", out, FILES, ours=(out / "runs").is_dir())  # a job's folder comes before any table
    jobs = build_jobs(sweep, out, args.reuse)
    old = [path for job in jobs for stage in job.stages if (path := stage.check())]
    warning = ""
    if old:
        warning = f"an older version made {old[0]} and {len(old) - 1} more: whether models changed since is unknown"
    return Setup(sweep, jobs, out, warning)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweep and return the exit status."""
    args = build_parser().parse_args(argv)
    try:
        check_single_process("it starts processes itself; a launcher is written in the sweep")
        setup = check(args)
    except ValueError as error:
        return _print_errors([error])
    except OSError as error:
        return _print_errors([unreadable(error)])
    if setup.warning:
        sys.stderr.write(f"dpdmd.compare: warning: {one_line(setup.warning)}\n")
    # These import torch, which takes seconds. Wrong input above is reported without it.
    from dpdmd.compare import outputs, preflight

    if problems := preflight.check(setup.sweep, setup.jobs):
        return _print_errors(problems)
    clear_leftovers([setup.out])
    command = shlex.join(["python", "-m", "dpdmd.compare", *(sys.argv[1:] if argv is None else argv)])

    def write_tables() -> outputs.WrittenTables:
        return outputs.write_tables(setup.sweep, setup.jobs, setup.out, command)

    workers = Workers(args.jobs or default_jobs(setup.sweep), on_finished=write_tables)
    workers.run(setup.jobs)
    problems = []
    try:
        written = write_tables()
        problems += written.problems
        sys.stdout.write(written.markdown)
        sys.stdout.flush()  # sampling the grid may fail or be killed
        if not workers.stopped:
            problems += outputs.write_sample_grid(setup.sweep, setup.jobs, setup.out)
    except OSError as error:
        problems.append(f"{setup.out}: the tables could not be written ({error})")
    _print_errors(problems)
    if workers.failures:
        print(f"dpdmd.compare: failed: {'; '.join(workers.failures)}; run the same command to retry", file=sys.stderr)
    _print_report_command(setup.out)
    if workers.stopped:
        print("dpdmd.compare: stopped; run the same command to continue", file=sys.stderr)
        return 128 + workers.stopped
    return 1 if problems or workers.failures else 0


def _print_report_command(out: Path) -> None:
    """Print the command that writes one page of all runs, if there are any."""
    try:
        read_results(out)
    except ValueError:
        return  # nothing is trained in this sweep, or no training has begun
    sys.stdout.write(f"\nreport: {shlex.join(['python', '-m', 'dpdmd.report', str(out)])}\n")


def default_jobs(sweep: Sweep) -> int:
    """Return one job per CPU core of this process, or a single one with a launcher or a GPU, which all would share."""
    import torch

    # A container or a scheduler may give a process some of the machine's cores; not every system can say so.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if torch.cuda.device_count() or not sweep.on_cores else cores


def _print_errors(problems: Sequence[object]) -> int:
    """Print one line per problem and return the exit status of wrong input."""
    for problem in problems:
        print_error("dpdmd.compare", problem)
    return 2


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
