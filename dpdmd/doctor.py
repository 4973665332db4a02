"""`python -m dpdmd.doctor` with the flags of `dpdmd.train`: check a configuration on its own weights before a run.

Loads everything that a run would load, on one process, and checks the arithmetic where such trainers go wrong. Writes a
table and an image of student, x0_real and x0_fake to --out. Exit status: 0 all checks pass; 1 a check failed, or disk
or memory is full; 2 wrong input.
"""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.doctor")

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dpdmd.config import Config, parse
from dpdmd.distributed.launch_env import check_single_process
from dpdmd.training import preflight
from dpdmd.utils import out_of_memory
from dpdmd.utils.atomic_files import delete_on_failure, write_text
from dpdmd.utils.error_lines import one_line
from dpdmd.utils.paths import check_writable, user_path


@contextmanager
def scratch_folder(out: Path) -> Iterator[Path]:
    """Make a folder under `out`, and delete it afterwards."""
    folder = out / ".scratch"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with delete_on_failure(folder):
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
    run.vis_every, run.max_steps, run.max_epoch = 0, 4, None
    method, optim = config.method, config.optim
    method.per_train_fake_num, method.fake_head_start = 1, 0
    optim.lr_scheduler, optim.lr_warmup_steps = "constant", 0
    return preflight.check(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the checks, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="dpdmd.doctor",
        usage="%(prog)s [--out OUT] [the flags of dpdmd.train, such as --config FILE]",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=user_path, default=Path("outputs/doctor"), help="folder (default: %(default)s)")
    own, flags = parser.parse_known_args(argv)
    try:
        check_single_process("it checks by itself what several ranks would do")
        check_writable("--out", own.out)
        config = parse(flags)
        run_dir = Path(config.run.run_dir or "outputs")
        with scratch_folder(own.out) as scratch:
            setup = prepare(config, scratch / "run")
            with out_of_memory.explained(f"{setup.memory.summary()}; {setup.memory.advice()}"):
                # Both import diffusers, which takes seconds: only once the input is known to be right.
                from dpdmd.distributed.topology import describe
                from dpdmd.training.doctor_checks import run_checks, table
                from dpdmd.training.trainer import Trainer

                trainer = Trainer(setup)
                shutil.copyfile(setup.folder.environment, own.out / "environment.json")
                results = run_checks(trainer, own.out, scratch, run_dir)
        write_text(own.out / "table.md", table(results) + "\n")
        write_text(own.out / "memory.txt", setup.memory.table() + "\n")
    except ValueError as error:
        print(f"dpdmd.doctor: error: {one_line(error)}", file=sys.stderr)
        return 2
    except (OSError, MemoryError) as error:
        print(f"dpdmd.doctor: stopped: {one_line(error)}", file=sys.stderr)
        return 1
    ran_on = describe(trainer.accelerator.num_processes, trainer.accelerator.device)
    sys.stdout.write(f"{table(results)}\n\n{setup.memory.table()}\n\n{ran_on}\n")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
