"""Time how long training waits for a checkpoint: written in line, as a simple trainer does, or beside the steps.

    python benchmarks/checkpoint_pause.py --out benchmarks/results
    python benchmarks/checkpoint_pause.py --teacher_id weights/stabilityai/stable-diffusion-3.5-medium --height 1024 ...

A round has three stretches of the same number of steps: one without a checkpoint, one that waits for its checkpoint,
and one that writes its checkpoint while the steps continue. Their order changes from round to round. The pause is the
time before the next step. The time of a stretch includes waiting for the writer at its end. Results are medians over
rounds. Flags that are not this program's go to dpdmd.train.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from result_file import result_head, write_result
from train_step import make_trainer

from dpdmd.training.trainer import Trainer

NONE, IN_LINE, BESIDE = "none", "in line", "beside the steps"


class Rounds:
    """Seconds of pauses and stretches, by the kind of checkpoint."""

    def __init__(self, trainer: Trainer, steps: int):
        self.trainer, self.steps, self.step = trainer, steps, 0
        self.pauses: dict[str, list[float]] = {kind: [] for kind in (NONE, IN_LINE, BESIDE)}
        self.stretches: dict[str, list[float]] = {kind: [] for kind in (NONE, IN_LINE, BESIDE)}

    def now(self) -> float:
        if self.trainer.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.accelerator.device)
        return time.perf_counter()

    def stretch(self, kind: str) -> None:
        started = self.now()
        if kind != NONE:
            self.trainer.checkpointer.save(self.step)
        if kind == IN_LINE:
            self.trainer.checkpointer.wait()
        paused = self.now()
        for _ in range(self.steps):
            self.trainer.take_step(self.step)
            self.step += 1
        self.trainer.checkpointer.wait()
        self.pauses[kind].append(paused - started)
        self.stretches[kind].append(self.now() - started)

    def forget(self) -> None:
        for seconds in (*self.pauses.values(), *self.stretches.values()):
            seconds.clear()


def size_gb(folder: Path) -> float:
    """Return the size of a checkpoint's own files in GB."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=12, help="of a stretch (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="folder that checkpoints go to (default: a temporary one)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    own, flags = parser.parse_known_args()
    flags = flags or ["--config", "scripts/configs/tiny.yaml"]
    work = Path(tempfile.mkdtemp(dir=own.work))
    try:
        trainer = make_trainer([*flags, "--checkpoints_total_limit", "2"], work / "run")
        rounds, kinds = Rounds(trainer, own.steps), [NONE, IN_LINE, BESIDE]
        for number in range(own.rounds + 1):
            if number == 1:
                rounds.forget()  # the first round warms up the libraries
            for kind in (*kinds[number % 3 :], *kinds[: number % 3]):
                rounds.stretch(kind)
        size = size_gb(trainer.folder.latest())
    finally:
        shutil.rmtree(work)
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    lines = [
        *result_head(
            "How long training waits for a checkpoint",
            f"{place} of {os.cpu_count()} cores; medians of {own.rounds} rounds, a stretch has {own.steps} steps, a "
            f"checkpoint {size:.3f} GB",
        ),
        "| checkpoint | pause, s | least and most | stretch, s | least and most |",
        "|---|---|---|---|---|",
    ]
    for kind in kinds:
        pause, stretch = rounds.pauses[kind], rounds.stretches[kind]
        lines.append(
            f"| {kind} | {statistics.median(pause):.3f} | {min(pause):.3f}, {max(pause):.3f} | "
            f"{statistics.median(stretch):.2f} | {min(stretch):.2f}, {max(stretch):.2f} |"
        )
    sys.stdout.write(write_result(own.out, "checkpoint_pause", lines))


if __name__ == "__main__":
    main()
