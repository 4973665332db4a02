"""Train good runs and runs that are broken on purpose, and show what the report says about each.

    python benchmarks/broken_runs.py --out outputs/broken_runs --seeds 0 1 2 3 4 5 6 7

Trains every kind of run with every seed on the bundled small world, one after another; runs that are done are kept.
Then prints a table: the measures of each kind at the end of training (smallest, median and largest of the seeds), and
the report's judgement of each run. The ranges of `dpdmd.report.health` come from such a table.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from processes import cpu_environment

from dpdmd import train
from dpdmd.methods import losses
from dpdmd.run_folder import RunFolder, read_records

STEPS = 240
FLAGS = (
    *("--config", "scripts/configs/tiny.yaml", "--max_steps", str(STEPS), "--lr_scheduler", "cosine"),
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


def main() -> None:
    """Train the runs that are missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/broken_runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
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
            with log.open("w") as out:
                environment = {**os.environ, **cpu_environment()}
                code = subprocess.run([sys.executable, __file__, *options], stdout=out, stderr=out, env=environment)
            print(f"{kind}, seed {seed}: exit status {code.returncode}", flush=True)


if __name__ == "__main__":
    main()
