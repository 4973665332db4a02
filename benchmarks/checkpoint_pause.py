"""How long training stands still for a checkpoint: written in line, as a simple trainer does, and beside the steps.

    python benchmarks/checkpoint_pause.py --out benchmarks/results
    python benchmarks/checkpoint_pause.py --teacher_id weights/stabilityai/stable-diffusion-3.5-medium --height 1024 ...

A round is three stretches of the same number of steps, one without a checkpoint, one with one that is waited for, one
with one that is written while the steps go on; the order changes from round to round. The pause is what the loop waits
before its next step; the stretch, waiting for the writer at its end included, is what all of it costs. Medians over
rounds. Flags that are not this program's own go to dpdmd.train.
"""

import argparse
import datetime
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from train_step import make_trainer

from dpdmd.training.trainer import Trainer
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.versions import versions

NONE, IN_LINE, BESIDE = "none", "in line", "beside the steps"


class Rounds:
    """Seconds of the pause and of the stretch, by way."""

    def __init__(self, trainer: Trainer, steps: int):
        self.trainer, self.steps, self.step = trainer, steps, 0
        self.pauses: dict[str, list[float]] = {way: [] for way in (NONE, IN_LINE, BESIDE)}
        self.stretches: dict[str, list[float]] = {way: [] for way in (NONE, IN_LINE, BESIDE)}

    def now(self) -> float:
        if self.trainer.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.accelerator.device)
        return time.perf_counter()

    def stretch(self, way: str) -> None:
        started = self.now()
        if way != NONE:
            self.trainer.checkpointer.save(self.step)
        if way == IN_LINE:
            self.trainer.checkpointer.wait()
        paused = self.now()
        for _ in range(self.steps):
            self.trainer.take_step(self.step)
            self.step += 1
        self.trainer.checkpointer.wait()
        self.pauses[way].append(paused - started)
        self.stretches[way].append(self.now() - started)

    def forget(self) -> None:
        for seconds in (*self.pauses.values(), *self.stretches.values()):
            seconds.clear()


def size_gb(folder: Path) -> float:
    """Bytes of a checkpoint's own files."""
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
        rounds, ways = Rounds(trainer, own.steps), [NONE, IN_LINE, BESIDE]
        for turn in range(own.rounds + 1):
            if turn == 1:
                rounds.forget()  # libraries warm up in the first
            for way in (*ways[turn % 3 :], *ways[: turn % 3]):
                rounds.stretch(way)
        size = size_gb(trainer.folder.latest())
    finally:
        shutil.rmtree(work)
    date = datetime.date.today().isoformat()
    used = ", ".join(f"{name} {version}" for name, version in versions().items())
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    lines = [
        f"# How long training stands still for a checkpoint ({date})",
        "",
        f"`{' '.join(['python', *sys.argv])}`",
        "",
        f"{place} of {os.cpu_count()} cores; medians of {own.rounds} rounds, a stretch has {own.steps} steps, a "
        f"checkpoint {size:.3f} GB; {used}",
        "",
        "| checkpoint | pause, s | least and most | stretch, s | least and most |",
        "|---|---|---|---|---|",
    ]
    for way in ways:
        pause, stretch = rounds.pauses[way], rounds.stretches[way]
        lines.append(
            f"| {way} | {statistics.median(pause):.3f} | {min(pause):.3f}, {max(pause):.3f} | "
            f"{statistics.median(stretch):.2f} | {min(stretch):.2f}, {max(stretch):.2f} |"
        )
    write_text(own.out / f"{date}_checkpoint_pause.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
