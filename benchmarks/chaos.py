"""Kill a training run with SIGKILL at random moments, resume it each time, and compare with one that nobody touched.

    python benchmarks/chaos.py --kills 20 --steps 60 --out benchmarks/results

All its processes die at once, so nothing can be saved on the way out. Kills fall anywhere between the first
line of the program and its end; every other one waits for a checkpoint that is being written. Prints how many steps
were lost to each, and whether the final student and fake score have the bytes of the uninterrupted run.
"""

import argparse
import json
import random
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from processes import LAUNCHER, cpu_environment, free_port, kill_all
from result_file import result_head, write_result
from safetensors.torch import load_file

from dpdmd.run_folder import RunFolder

SMALL_WORLD = (
    "--teacher_id weights/tiny/sd35 --prompt_txt data/shapes_train.txt --height 64 --width 64 --batch_size 2 "
    "--lr_student 8e-4 --lr_fake 8e-4 --vis_every 0 --report_to none"
)
WEIGHTS = ("student/transformer/diffusion_pytorch_model.safetensors", "state/fake.safetensors")
TIMEOUT = 300.0  # seconds without the step or the checkpoint that a kill waits for


@dataclass(frozen=True)
class Pace:
    """Seconds that the untouched run took to load, and for a step."""

    loading: float
    step: float


@dataclass(frozen=True)
class Kill:
    """What one SIGKILL met.

    Attributes:
        step: steps that were recorded when it came.
        saved: step of the newest whole checkpoint then.
        writing: whether a checkpoint was being written.
    """

    step: int
    saved: int
    writing: bool


def launch(flags: list[str], run: Path, processes: int) -> subprocess.Popen:
    command = [sys.executable, "-m"]
    if processes > 1:
        command += [*LAUNCHER, "--master_port", free_port(), "--nproc_per_node", str(processes), "-m"]
    command += ["dpdmd.train", *flags, "--run_dir", str(run), "--resume_from_checkpoint", "latest"]
    log = (run.parent / f"{run.name}.log").open("a")
    return subprocess.Popen(command, env=cpu_environment(), start_new_session=True, stdout=log, stderr=log)


def last_step(folder: RunFolder) -> int:
    """The last step that metrics.jsonl has whole."""
    steps = [0]
    for line in folder.metrics.read_text().splitlines() if folder.metrics.exists() else []:
        try:
            steps.append(json.loads(line)["step"])
        except json.JSONDecodeError:
            continue  # the line that the kill cut short
    return steps[-1]


def last_saved(folder: RunFolder) -> int:
    """Step of the newest whole checkpoint."""
    latest = folder.latest()
    return int(latest.name.rpartition("_")[2]) if latest else 0


def is_writing(folder: RunFolder) -> bool:
    return any(folder.ckpts.glob(".step_*.tmp"))


def kill_once(
    flags: list[str],
    folder: RunFolder,
    processes: int,
    chance: random.Random,
    pace: Pace,
    allowance: int,
    in_write: bool,
) -> Kill | None:
    """Start, wait until a random moment (then, if asked, for the next checkpoint to be written), kill.

    The moment is at most `allowance` steps ahead, however fast the machine is; one in five falls into loading.

    Returns:
        None if the run had ended before.
    """
    goal = last_step(folder) + chance.randint(1, allowance)
    process, started = launch(flags, folder.root, processes), time.monotonic()
    longest = chance.uniform(0, pace.loading) if chance.random() < 0.2 else TIMEOUT
    while last_step(folder) < goal and process.poll() is None and time.monotonic() < started + longest:
        time.sleep(0.01)
    time.sleep(chance.uniform(0, pace.step))
    until = time.monotonic() + TIMEOUT
    while in_write and not is_writing(folder) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.001)
    if process.poll() is not None:
        return None
    writing = is_writing(folder)
    kill_all(process.pid)
    process.wait()
    return Kill(last_step(folder), last_saved(folder), writing)


def finish(flags: list[str], run: Path, processes: int) -> None:
    process = launch(flags, run, processes)
    if process.wait():
        sys.exit(f"{run} did not finish: {(run.parent / f'{run.name}.log').read_text()[-3000:]}")


def untouched(flags: list[str], run: Path, processes: int) -> Pace:
    """The run that nobody kills, and how long its parts took."""
    started = time.monotonic()
    finish(flags, run, processes)
    total = time.monotonic() - started
    steps = [json.loads(line)["seconds"] for line in RunFolder.of(run).metrics.read_text().splitlines()]
    return Pace(max(0.0, total - sum(steps)), sum(steps) / len(steps))


def largest_difference(first: Path, second: Path) -> float:
    found = 0.0
    for name in WEIGHTS:
        ours, theirs = load_file(first / name), load_file(second / name)
        found = max(found, *((ours[key] - theirs[key]).abs().max().item() for key in ours))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--ckpt_every", type=int, default=2, help="often, so that many kills meet a half-written one")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--flags", default=SMALL_WORLD, help="of dpdmd.train")
    parser.add_argument("--work", type=Path, help="folder for the two runs (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    work.mkdir(parents=True, exist_ok=True)
    flags = [*shlex.split(args.flags), "--max_steps", str(args.steps), "--ckpt_every", str(args.ckpt_every)]
    pace = untouched(flags, work / "untouched", args.processes)
    folder, chance, kills = RunFolder.of(work / "killed"), random.Random(args.seed), []
    while len(kills) < args.kills:
        allowance = (args.steps - 2 * args.ckpt_every - last_step(folder)) // (args.kills - len(kills) + 1)
        if allowance < 1:
            sys.exit(f"{args.steps} steps are too few for {args.kills} kills: give more --steps")
        in_write = len(kills) % 2 == 1
        if kill := kill_once(flags, folder, args.processes, chance, pace, allowance, in_write):
            kills.append(kill)
            print(f"kill {len(kills)}: {kill}", file=sys.stderr, flush=True)
    finish(flags, folder.root, args.processes)
    last = f"step_{args.steps:06d}"
    difference = largest_difference(folder.ckpts / last, work / "untouched" / "ckpts" / last)
    same = all(
        (folder.ckpts / last / name).read_bytes() == (work / "untouched" / "ckpts" / last / name).read_bytes()
        for name in WEIGHTS
    )
    lost = [kill.step - kill.saved for kill in kills]
    lines = [
        *result_head(
            "SIGKILL at random moments",
            f"{args.processes} process(es) on a CPU, a checkpoint every {args.ckpt_every} of {args.steps} steps",
        ),
        "| | |",
        "|---|---|",
        f"| kills | {len(kills)} |",
        f"| while a checkpoint was being written | {sum(kill.writing for kill in kills)} |",
        f"| steps lost to a kill, mean and most | {sum(lost) / len(lost):.2f}, {max(lost)} |",
        f"| final student and fake score | {'equal to the last byte' if same else 'not equal'} |",
        f"| largest difference of a weight | {difference:.1e} |",
    ]
    suffix = "" if args.processes == 1 else f"_{args.processes}_processes"
    sys.stdout.write(write_result(args.out, f"chaos{suffix}", lines))
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
