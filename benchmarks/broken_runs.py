"""Train good runs and runs that are broken on purpose, and show what the report says about each.

    python benchmarks/broken_runs.py --out outputs/broken_runs --seeds 0 1 2 3 4 5 6 7

Trains every kind of run with every seed on the bundled small world, one after another. Runs that are done are kept; one
that was interrupted starts anew. Then writes a table: the measures of each kind (smallest, median and largest of the
seeds) and how many of its runs the report takes for which fault. The ranges of `dpdmd.report.health` come from such a
table. Times the measures too.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from processes import cpu_environment
from result_file import describe_cpu, result_head, write_result

from dpdmd import train
from dpdmd.methods import health, losses
from dpdmd.report.health import Health, judge
from dpdmd.run_folder import RunFolder, read_records
from dpdmd.utils.tables import markdown_table

STEPS = 240
FLAGS = (
    *("--config", "scripts/configs/paper_tiny.yaml", "--max_steps", str(STEPS), "--lr_scheduler", "cosine"),
    *("--eval_every", "0", "--vis_every", "0", "--report_to", "none", "--ckpt_every", str(STEPS)),
)
WRONG_SIGN = "wrong_sign"
KINDS = {  # name -> flags
    "good": (),
    "good_dmd": ("--method", "dmd"),
    "good_strong_lambda": ("--div_weight", "10"),
    "good_x_student": ("--dmd_normalizer", "x_student"),
    WRONG_SIGN: (),
    "frozen_fake_score": ("--lr_fake", "1e-30"),
    "no_diversity_loss": ("--div_weight", "0"),
    "learning_rate_x30": ("--lr_student", "2.4e-2", "--lr_fake", "2.4e-2"),
}


def train_one(kind: str, seed: int, folder: Path) -> None:
    """Train one run in this process."""
    if kind == WRONG_SIGN:
        right = losses.dmd_loss

        def wrong(x, x0_real, x0_fake, z_t, normalizer="z_t"):
            reflected = 2 * x0_real - x0_fake  # the same gradient with the other sign, and the same normaliser
            return right(x, x0_real, reflected, z_t, normalizer)

        losses.dmd_loss = wrong
    sys.exit(train.main([*FLAGS, *KINDS[kind], "--seed", str(seed), "--run_dir", str(folder)]))


def is_done(folder: Path) -> bool:
    """Return whether the folder holds a run that reached its last step."""
    metrics = RunFolder.of(folder).metrics
    return metrics.is_file() and any(record["step"] == STEPS for record in read_records(metrics))


def judgement(folder: Path) -> Health:
    """Return what the report says about a run."""
    found = judge(read_records(RunFolder.of(folder).metrics))
    assert found, f"{folder} has too few updates"
    return found


def seconds_of_measures(shape: Sequence[int], repeats: int = 50) -> float:
    """Return the median seconds of the health measures of one student update, for latents of this shape."""
    x, real, prediction, target = torch.randn((4, *shape)).unbind()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        health.sample_metrics(x, real)
        health.anchor_metrics(prediction, target, 5.0)
        taken.append(time.perf_counter() - started)
    return median(taken)


def tables(judged: Mapping[tuple[str, int], Health]) -> list[str]:
    """Return the lines of both tables: measures and faults of each kind."""
    kinds = list(dict.fromkeys(kind for kind, _ in judged))
    names = [f"{measure.name} ({measure.range})" for measure in next(iter(judged.values())).measures]
    measures, faults = [], []
    for kind in kinds:
        found = [health for (each, _), health in judged.items() if each == kind]
        columns = zip(*([measure.value for measure in health.measures] for health in found), strict=True)
        cells = [
            "" if None in column else f"{min(column):.3g}, {median(column):.3g}, {max(column):.3g}"
            for column in columns
        ]
        measures.append([kind, *cells])
        counted = Counter(map(str, found))
        faults += [[kind, f"{count} of {len(found)}", text] for text, count in counted.items()]
    return [
        markdown_table(["runs", *names], measures),
        "",
        markdown_table(["runs", "", "the report says"], faults),
    ]


def cost(folder: Path) -> str:
    """Return the line on the time of the measures, beside a student update of this run."""
    records = [record for record in read_records(RunFolder.of(folder).metrics) if record["turn"] == "student"]
    update = median(record["seconds"] for record in records)
    small, large = (seconds_of_measures(shape) for shape in ((8, 4, 16, 16), (1, 16, 128, 128)))
    return (
        f"The measures of a student update take {small * 1000:.2g} ms, {small / update:.2%} of an update of the small "
        f"world ({update:.2f} s); for latents of SD3.5 at 1024 x 1024 {large * 1000:.2g} ms."
    )


def main() -> None:
    """Train the runs that are missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/broken_runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--train", action="store_true", help="train the one kind and seed in this process")
    args = parser.parse_args()
    if args.train:
        train_one(args.kinds[0], args.seeds[0], args.out)
    folders = {(kind, seed): args.out / f"{kind}_{seed}" for seed in args.seeds for kind in args.kinds}
    for (kind, seed), folder in folders.items():
        if not is_done(folder):
            options = ["--train", "--kinds", kind, "--seeds", str(seed), "--out", str(folder)]
            log = folder.with_suffix(".txt")
            log.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            with log.open("w") as out:
                environment = {**os.environ, **cpu_environment()}
                code = subprocess.run([sys.executable, __file__, *options], stdout=out, stderr=out, env=environment)
            print(f"{kind}, seed {seed}: exit status {code.returncode}", flush=True)
    judged = {key: judgement(folder) for key, folder in folders.items() if is_done(folder)}
    lines = result_head("Good runs, and runs that were broken on purpose", describe_cpu(threads=1))
    if not judged:
        sys.exit("broken_runs: no run finished: see the logs in " + str(args.out))
    lines += [f"{STEPS} steps of `{' '.join(FLAGS[:2])}` with a cosine. {cost(folders[next(iter(judged))])}", ""]
    lines += ["Of each measure: smallest, median, largest; its healthy range in the head.", "", *tables(judged), ""]
    sys.stdout.write(write_result(args.results, "broken_runs", lines))


if __name__ == "__main__":
    main()
