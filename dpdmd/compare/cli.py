"""Train, measure and compare: `python -m dpdmd.compare SWEEP.yaml`.

Every configuration of the sweep is trained with every seed, then measured; the same command goes on after an
interruption and skips what is finished. OUT gets table.md, table.csv, table.tex and plane.png, anew after each model;
at the end picture.png; and runs/. What models, prompts and scorers lack is told before anything starts.
Exit status: 0 done; 1 something failed, the rest is there; 2 wrong input; 128 + its number after a signal.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpdmd.compare import sweep_file
from dpdmd.compare.jobs import Job, Workers, plan_jobs
from dpdmd.compare.sweep import Sweep
from dpdmd.utils.atomic_files import clear_leftovers
from dpdmd.utils.error_lines import one_line
from dpdmd.utils.paths import check_writable, user_path


@dataclass(frozen=True)
class Plan:
    """A checked command line.

    Attributes:
        sweep: the part of it that was asked for.
        jobs: all of that part's, finished ones too.
        out: the folder.
    """

    sweep: Sweep
    jobs: list[Job]
    out: Path


def build_parser() -> argparse.ArgumentParser:
    """The flags of `dpdmd.compare`."""
    parser = argparse.ArgumentParser(
        prog="dpdmd.compare",
        description=__doc__,
        epilog=sweep_file.__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sweep", type=user_path, help="the sweep's YAML file, as below")
    parser.add_argument("--out", type=user_path, help="folder (default: outputs/ and the sweep's name)")
    parser.add_argument(
        "--jobs",
        type=int,
        help="models at work at a time (default: one a CPU core; 1 on a GPU, or if the sweep gives a launcher)",
    )
    parser.add_argument(
        "--reuse",
        nargs="+",
        type=user_path,
        default=[],
        metavar="OUT",
        help="other sweeps' folders: what was trained there with the same options and seed is measured only",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="train, measure and show these configurations alone")
    parser.add_argument(
        "--seeds", nargs="+", type=int, metavar="SEED", help="with these of the sweep's seeds alone (default: all)"
    )
    return parser


def check(args: argparse.Namespace) -> Plan:
    """The sweep, and all its jobs: what is there already was made as it would be now.

    Raises:
        ValueError: one line that names the file or flag and what to do.
    """
    sweep = sweep_file.read_sweep(args.sweep).part(args.only, args.seeds)
    if args.jobs is not None and args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: must be at least 1")
    out = args.out or Path("outputs") / args.sweep.stem
    check_writable("--out", out)
    for folder in args.reuse:
        if not (folder / "runs").is_dir():
            raise ValueError(f"--reuse {folder}: no sweep has run there; give the --out of one")
    jobs = plan_jobs(sweep, out, args.reuse)
    for job in jobs:
        for stage in job.stages:
            stage.check()
    return Plan(sweep, jobs, out)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        plan = check(args)
    except ValueError as error:
        print(f"dpdmd.compare: error: {one_line(error)}", file=sys.stderr)
        return 2
    # torch takes seconds to import: only now, so that a wrong sweep is told at once.
    from dpdmd.compare import preflight, results

    if problems := preflight.check(plan.sweep, plan.jobs):
        for problem in problems:
            print(f"dpdmd.compare: error: {one_line(problem)}", file=sys.stderr)
        return 2
    clear_leftovers([plan.out])
    command = shlex.join(["python", "-m", "dpdmd.compare", *(sys.argv[1:] if argv is None else argv)])

    def write() -> results.Written:
        return results.write(plan.sweep, plan.jobs, plan.out, command)

    workers = Workers(args.jobs or default_jobs(plan.sweep), show=write)
    workers.run(plan.jobs)
    problems = []
    try:
        written = write()
        problems += written.problems
        sys.stdout.write(written.text)
        sys.stdout.flush()  # what comes may fail, or be killed
        if not workers.stopped:
            problems += results.draw_sample_grid(plan.sweep, plan.jobs, plan.out)
    except OSError as error:
        problems.append(f"{plan.out}: the tables could not be written ({error})")
    for problem in problems:
        print(f"dpdmd.compare: error: {one_line(problem)}", file=sys.stderr)
    if workers.failures:
        print(f"dpdmd.compare: failed: {'; '.join(workers.failures)}; the same command tries again", file=sys.stderr)
    if workers.stopped:
        print("dpdmd.compare: stopped; the same command goes on", file=sys.stderr)
        return 128 + workers.stopped
    return 1 if problems or workers.failures else 0


def default_jobs(sweep: Sweep) -> int:
    """One a CPU core; one alone where a launcher spreads it, or where all would share one GPU."""
    import torch

    return 1 if torch.cuda.device_count() or not sweep.on_cores else os.cpu_count() or 1
