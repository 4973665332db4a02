"""Teacher, DMD and DP-DMD on the small world, same budget, several seeds of training: one dated table.

    python benchmarks/small_world.py --out benchmarks/results

Every run is `scripts/configs/tiny.yaml` with another --method and --seed; a finished run is neither trained nor
measured again and a broken-off one is continued, so the same command goes on after an interruption. Further flags go
to the trainer.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from dpdmd.checkpoint import versions
from dpdmd.grids import labelled_grid, save_picture, to_pil
from dpdmd.sampling import batches_of, load_sampler
from dpdmd.shapes.measure import COLUMNS

METHODS = ("dmd", "dpdmd")
TEACHER = "weights/tiny/sd35"
PICTURED = ("a red circle", "a shape on a grey background")


def run(command: list[str], log: Path) -> None:
    """One command on one core (two threads that share a core with others are several times slower)."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        subprocess.run(command, check=True, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"})


def train_and_measure(root: Path, method: str, seed: int, num_seeds: int, extra: list[str]) -> None:
    folder, figures = root / f"{method}_{seed}", root / f"{method}_{seed}.json"
    if figures.exists():
        return
    command = [sys.executable, "-m", "dpdmd.train", "--config", "scripts/configs/tiny.yaml", "--method", method]
    command += ["--seed", str(seed), "--run_dir", str(folder), "--resume_from_checkpoint", "latest", *extra]
    run(command, root / f"{method}_{seed}.log")
    measure(folder, figures, num_seeds)


def measure(model: Path, out: Path, num_seeds: int) -> None:
    if out.exists():
        return
    command = [sys.executable, "-m", "dpdmd.shapes.measure", "--model", str(model), "--out", str(out)]
    run([*command, "--num_seeds", str(num_seeds)], out.with_suffix(".log"))


def mean_metrics(path: Path) -> dict[str, float]:
    (details,) = json.loads(path.read_text()).values()
    return details["mean"]


def report(root: Path, seeds: list[int], num_seeds: int, command: str) -> str:
    """Markdown: a row a run, then each method's mean and its ratio to the teacher."""
    teacher = mean_metrics(root / "teacher.json")
    lines = ["| model | " + " | ".join(COLUMNS) + " | entropy / teacher's |", "|---|" + "---|" * (len(COLUMNS) + 1)]

    def row(name: str, values: dict[str, float]) -> str:
        figures = " | ".join(f"{values[column]:.3f}" for column in COLUMNS)
        return f"| {name} | {figures} | {values['entropy'] / teacher['entropy']:.1%} |"

    lines.append(row("teacher, 30 steps", teacher))
    for method in METHODS:
        runs = [mean_metrics(root / f"{method}_{seed}.json") for seed in seeds]
        lines += [row(f"{method}, seed {seed}", values) for seed, values in zip(seeds, runs, strict=True)]
        lines.append(
            row(f"**{method}, mean**", {column: float(np.mean([r[column] for r in runs])) for column in COLUMNS})
        )
    prompts = int(teacher["num_prompts"])
    head = [
        f"# Small world: teacher, DMD, DP-DMD ({datetime.date.today().isoformat()})",
        "",
        f"`{command}`",
        "",
        f"{prompts} held-out prompts x {num_seeds} seeds; {os.cpu_count()} cores, {platform.machine()}; "
        + ", ".join(f"{name} {version}" for name, version in versions().items()),
        "",
    ]
    return "\n".join([*head, *lines]) + "\n"


def picture(root: Path, seed: int, path: Path) -> None:
    """Rows of nine start noises, the same for all: teacher, DMD and DP-DMD, for each of `PICTURED`."""
    models = {"teacher, 30 steps": Path(TEACHER)} | {f"{m}, 4 steps": root / f"{m}_{seed}" for m in METHODS}
    rows: dict[str, list] = {}
    for name, model in models.items():
        sampler, encoder = load_sampler(model, torch.device("cpu"))
        for keys, pictures in sampler.sweep(encoder, PICTURED, batches_of(len(PICTURED), 9, 9), 0):
            for (prompt, _), made in zip(keys, to_pil(pictures), strict=True):
                rows.setdefault(f'{name}: "{PICTURED[prompt]}"', []).append(made)
    labels = sorted(rows, key=lambda label: label.split(": ")[1])  # stable: the models keep their order
    save_picture(labelled_grid([rows[label] for label in labels], labels), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("outputs/small_world"), help="where the runs go")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the dated table")
    parser.add_argument("--picture", type=Path, default=Path("images/small_world.png"), help="the README's picture")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of training")
    parser.add_argument("--num_seeds", type=int, default=64, help="pictures a prompt")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time, one core each")
    args, extra = parser.parse_known_args()
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(measure, Path(TEACHER), args.root / "teacher.json", args.num_seeds)]
        for seed in args.seeds:
            jobs += [pool.submit(train_and_measure, args.root, m, seed, args.num_seeds, extra) for m in METHODS]
        for job in jobs:
            job.result()
    text = report(args.root, args.seeds, args.num_seeds, " ".join(["python", *sys.argv]))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{datetime.date.today().isoformat()}_small_world.md").write_text(text)
    picture(args.root, args.seeds[0], args.picture)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
