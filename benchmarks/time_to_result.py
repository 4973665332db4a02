"""Measure after how many steps a small-world run reaches its final quality, for several sets of flags.

    python benchmarks/time_to_result.py --way "as it is:" --way "coarse anchor:--anchor_steps 4"

Each --way is `scripts/configs/paper_tiny.yaml` with further flags, without evaluation in the loop. A run uses one core
and saves a checkpoint every --every steps, which the oracle measures. A metric's final value is its mean over the last
quarter of the checkpoints. The result is reached at the first checkpoint from which accuracy, entropy, coverage and
spread, each averaged with the next checkpoint, all stay at 95% of their final values. Minutes count only steps, from
metrics.jsonl. Runs and measurements that exist already are used again.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from result_file import result_head, write_result

from dpdmd.run_folder import RunFolder
from dpdmd.shapes.measure import COLUMNS
from dpdmd.utils.atomic_files import write_text

METRICS = ("accuracy", "entropy", "coverage", "spread")
CONFIG = Path("scripts/configs/paper_tiny.yaml")


@dataclass(frozen=True)
class Trajectory:
    """One run's metrics over its C checkpoints.

    Attributes:
        steps: [C].
        minutes: of training up to each checkpoint, [C].
        metrics: name -> values, [C].
    """

    steps: np.ndarray
    minutes: np.ndarray
    metrics: dict[str, np.ndarray]

    def final(self, name: str) -> float:
        return float(self.metrics[name][-max(1, len(self.steps) // 4) :].mean())

    def arrival(self, share: float = 0.95) -> int:
        """Return the index of the first checkpoint from which every metric stays at `share` of its final value."""
        good = np.ones(len(self.steps), dtype=bool)
        for name in METRICS:
            values = self.metrics[name]
            smooth = (values + np.append(values[1:], values[-1])) / 2
            good &= smooth >= share * self.final(name)
        bad = np.flatnonzero(~good)
        return int(bad[-1]) + 1 if len(bad) else 0


def run(command: list[str], log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        subprocess.run(command, check=True, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})


def without_scorers(root: Path) -> Path:
    """Write the small world's configuration without evaluation, and return its path."""
    values = yaml.safe_load(CONFIG.read_text())
    values["eval"] = {}
    path = root / "training.yaml"
    write_text(path, yaml.safe_dump(values))
    return path


def trajectory(root: Path, name: str, flags: list[str], seed: int, every: int, num_seeds: int) -> Trajectory:
    """Train, measure every checkpoint, and read the results."""
    folder, measured = root / f"{name}_{seed}", root / f"{name}_{seed}.json"
    if not measured.exists():
        command = [sys.executable, "-m", "dpdmd.train", "--config", str(root / "training.yaml"), "--seed", str(seed)]
        command += ["--vis_every", "0", "--ckpt_every", str(every), "--report_to", "none", "--run_dir", str(folder)]
        run([*command, "--resume_from_checkpoint", "latest", *flags], root / f"{name}_{seed}.log")
        models = [str(path) for path in RunFolder.of(folder).checkpoints()]
        command = [sys.executable, "-m", "dpdmd.shapes.measure", "--model", *models, "--out", str(measured)]
        run([*command, "--num_seeds", str(num_seeds)], root / f"{name}_{seed}.log")
    rows = [row["mean"] for row in json.loads(measured.read_text()).values()]
    steps = np.array([int(path.name.rpartition("_")[2]) for path in RunFolder.of(folder).checkpoints()])
    records = [json.loads(line) for line in RunFolder.of(folder).metrics.read_text().splitlines()]
    minutes = np.cumsum([record["seconds"] for record in records]) / 60
    return Trajectory(steps, minutes[steps - 1], {name: np.array([row[name] for row in rows]) for name in COLUMNS})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--way", action="append", required=True, metavar="NAME:FLAGS", help="a variant; may be repeated"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of training")
    parser.add_argument("--every", type=int, default=60, help="steps between checkpoints")
    parser.add_argument("--num_seeds", type=int, default=32, help="images a prompt")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one core each")
    parser.add_argument("--root", type=Path, default=Path("outputs/time_to_result"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    variants = {name: flags.split() for name, _, flags in (each.partition(":") for each in args.way)}
    without_scorers(args.root)
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = {
            (name, seed): pool.submit(
                trajectory, args.root, name.replace(" ", "_"), flags, seed, args.every, args.num_seeds
            )
            for name, flags in variants.items()
            for seed in args.seeds
        }
        found = {key: job.result() for key, job in jobs.items()}
    lines = [
        *result_head(
            "Time to result on the small world",
            f"A checkpoint every {args.every} steps, 16 prompts x {args.num_seeds} seeds each; {os.cpu_count()} cores, "
            f"{args.jobs} runs at a time",
        ),
        "| name | flags | seed | steps to 95% | minutes | of steps | "
        + " | ".join(f"final {name}" for name in COLUMNS)
        + " |",
        "|---|---|---|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for (name, seed), track in found.items():
        at = track.arrival()
        there = (str(track.steps[at]), f"{track.minutes[at]:.1f}") if at < len(track.steps) else ("not reached", "")
        finals = " | ".join(f"{track.final(column):.3f}" for column in COLUMNS)
        flags = f"`{' '.join(variants[name])}`" if variants[name] else ""
        lines.append(f"| {name} | {flags} | {seed} | {there[0]} | {there[1]} | {track.steps[-1]} | {finals} |")
    values = {
        f"{name}, seed {seed}": {"steps": track.steps.tolist(), "minutes": track.minutes.tolist()}
        | {column: track.metrics[column].tolist() for column in COLUMNS}
        for (name, seed), track in found.items()
    }
    sys.stdout.write(write_result(args.out, "time_to_result", lines, values))


if __name__ == "__main__":
    main()
