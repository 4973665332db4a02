"""`python -m dpdmd.doctor` with the flags of `dpdmd.train`: check a configuration on its own weights before a run.

Loads everything that a run would load, on one process, and checks the arithmetic where such trainers go wrong. Writes a
table and an image of student, x0_real and x0_fake to --out. Exit status: 0 all checks pass; 1 a check failed, or disk
or memory is full; 2 wrong input.

With --memory it loads nothing and only prints the memory estimate. This needs no weights: if the default teacher is not
there, the shapes of the family's official model are used.
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.doctor")

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

from dpdmd.config import Config, parse
from dpdmd.distributed.launch_env import check_single_process
from dpdmd.run_folder import RunFolder, check_no_run
from dpdmd.training import preflight
from dpdmd.training.checkpoint import SaveError
from dpdmd.training.memory_items import Topology, doctor_item
from dpdmd.training.memory_preview import preview_memory
from dpdmd.utils import out_of_memory
from dpdmd.utils.atomic_files import delete_on_failure, write_text
from dpdmd.utils.paths import check_replaced, check_writable, user_path
from dpdmd.utils.programs import FAILURES, make_parser, run_program
from dpdmd.utils.text_files import has_key

MAX_PROCESSES = 2**16
FILES = ("environment.json", "pictures.png", "table.md", "memory.txt")  # in OUT, in the order in which they are written


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """Make a folder under `out`, without what a killed doctor left there, and delete it afterwards.

    Raises:
        ValueError: another doctor is at work there.
    """
    folder = out / ".scratch"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = RunFolder.of(folder).lock()
    except ValueError:
        raise ValueError(f"--out {out}: another doctor is at work there; wait until it ends, or give another") from None
    with lock or nullcontext(), delete_on_failure(folder):
        for left in filter(Path.is_dir, folder.iterdir()):
            shutil.rmtree(left, ignore_errors=True)
        yield folder
        shutil.rmtree(folder, ignore_errors=True)


def prepare(config: Config, run_dir: Path) -> preflight.RunSetup:
    """Turn `config` into a short run that writes into `run_dir` alone, and check it.

    Raises:
        ValueError: wrong input, with the message of `dpdmd.train`.
    """
    run = config.run
    run.run_dir, run.resume_from_checkpoint, run.report_to = str(run_dir), None, "none"
    run.log_path = run.ckpt_dir = run.eval_dir = run.process_folder_name = run.diversity_folder_name = None
    run.vis_every, run.max_steps, run.max_epoch, run.nonfinite = 0, 4, None, "stop"
    method, optim = config.method, config.optim
    method.per_train_fake_num, method.fake_head_start = 1, 0
    optim.lr_scheduler, optim.lr_warmup_steps, optim.shard_teacher = "constant", 0, False
    return preflight.check(config, saves=False)


def memory_table(own: argparse.Namespace, flags: Sequence[str]) -> str:
    """Return the table of `--memory`, with the source of the model's shapes.

    Raises:
        ValueError: wrong input, with the message of `dpdmd.train`.
    """
    processes = 1 if own.num_processes is None else own.num_processes
    if not 1 <= processes <= MAX_PROCESSES:
        raise ValueError(f"--num_processes {processes}: must be 1 to {MAX_PROCESSES}")
    memory, source = preview_memory(parse(flags), Topology(processes, own.fsdp))
    return f"{memory.table()}\nshapes of the models: {source}\n"


def _report_memory(setup: preflight.RunSetup) -> None:
    """Print the estimate of the doctor itself in one line: on a CPU, its copies lie beside the run's memory."""
    memory = setup.memory
    if memory.device is None:
        memory = replace(memory, items=(*memory.items, doctor_item(setup.config)))
    sys.stderr.write(f"memory of the checks: {memory.summary()}\n")


def _check_memory_only(own: argparse.Namespace) -> None:
    """Check that the flags of `--memory` are not given without it."""
    for flag, given in (("--num_processes", own.num_processes is not None), ("--fsdp", own.fsdp)):
        if given:
            raise ValueError(f"{flag}: is for --memory alone; the doctor itself runs on one process")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks, and return the exit status."""
    parser = make_parser(
        "dpdmd.doctor",
        __doc__,
        usage="%(prog)s [--out OUT | --memory [--num_processes N] [--fsdp]] [the flags of dpdmd.train]",
    )
    parser.add_argument("--out", type=user_path, default=Path("outputs/doctor"), help="folder (default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="only print the memory estimate of one process")
    parser.add_argument("--num_processes", type=int, help="with --memory: processes of the run, one a GPU (default: 1)")
    parser.add_argument("--fsdp", action="store_true", help="with --memory: the networks are sharded by FSDP2")
    own, flags = parser.parse_known_args(argv)
    return run_program("dpdmd.doctor", lambda: _run(own, flags), (*FAILURES, SaveError))


def _run(own: argparse.Namespace, flags: Sequence[str]) -> int:
    if own.memory:
        sys.stdout.write(memory_table(own, flags))
        return 0
    _check_memory_only(own)
    check_single_process("it checks by itself what several ranks would do")
    check_writable("--out", own.out)
    check_no_run("--out", own.out)
    check_replaced("--out", own.out, FILES, ours=has_key(own.out / FILES[0], "versions"))
    config = parse(flags)
    checkpoints = RunFolder.from_config(config.run).ckpts
    with scratch_folder(own.out) as scratch:
        setup = prepare(config, scratch / "run")
        _report_memory(setup)
        with out_of_memory.explained(f"{setup.memory.summary()}; {setup.memory.advice()}"):
            # Both import diffusers, which takes seconds: only once the input is known to be right.
            from dpdmd.distributed.topology import describe
            from dpdmd.training.doctor_checks import run_checks, table
            from dpdmd.training.trainer import Trainer

            trainer = Trainer(setup)
            shutil.copyfile(setup.folder.environment, own.out / "environment.json")
            results = run_checks(trainer, own.out, scratch, checkpoints)
    write_text(own.out / "table.md", table(results) + "\n")
    write_text(own.out / "memory.txt", setup.memory.table() + "\n")
    ran_on = describe(trainer.accelerator.num_processes, trainer.accelerator.device)
    sys.stdout.write(f"{table(results)}\n\n{setup.memory.table()}\n\n{ran_on}\n")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
