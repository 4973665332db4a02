"""Time the scoring of an evaluation as we do it and as the release does it, and write a dated table.

    python benchmarks/scorers.py --out benchmarks/results

The release loads every scorer at each evaluation, and calls ImageReward once for each image and PickScore once for all
images. We load the scorers once a run and call them in batches; on a CPU ours compute in fp64, the release's in fp32.
Both use the same weights and images and are timed alternately. With --run_dir, the table also has evaluation's share
of that run's time, from its metrics.jsonl.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
from result_file import result_head, write_result

from dpdmd.evaluation.scorer_files import check_scorer_paths
from dpdmd.evaluation.scorers import build_scorer
from dpdmd.evaluation.scorers.base import Sample, Scorer
from dpdmd.evaluation.scoring import score_batch
from dpdmd.shapes.measure_scorers import SCORERS, TEST_SEED, images_of
from dpdmd.shapes.world import sample_caption, sample_scene

OURS, RELEASE = "ours", "the release's way"
NAMES = ("div_clip", "div_dino", "pickscore", "imagereward")


def load(root: Path, device: torch.device) -> list[Scorer]:
    paths = check_scorer_paths({flag: str(root / place) for flag, place in SCORERS.items()}, NAMES)
    return [build_scorer(name, paths[name], device) for name in NAMES]


def score_as_release(root: Path, samples: list[Sample], device: torch.device) -> None:
    for scorer in load(root, device):
        scorer.network.float()
        if scorer.name == "imagereward":
            for sample in samples:
                scorer.score([sample])
        elif scorer.name == "pickscore":
            scorer.score(samples)
        else:
            scorer.features(samples)


def score_as_we_do(scorers: list[Scorer], samples: list[Sample]) -> None:
    size = 9
    for start in range(0, len(samples), size):
        score_batch(samples[start : start + size], scorers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("weights/tiny"), help="folder of the scorers")
    parser.add_argument("--num_images", type=int, default=144)
    parser.add_argument("--evaluations", type=int, default=4, help="number of timings of each")
    parser.add_argument("--run_dir", type=Path, help="a finished run with evaluation in the loop")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    scenes = [sample_scene(TEST_SEED, index) for index in range(args.num_images)]
    samples = [
        Sample(image, sample_caption(scene, TEST_SEED, index), (index, 0))
        for index, (scene, image) in enumerate(zip(scenes, images_of(scenes), strict=True))
    ]
    scorers = load(args.root, device)
    score_as_we_do(scorers, samples[:9])  # warm up the libraries before timing
    score_as_release(args.root, samples[:9], device)
    seconds: dict[str, list[float]] = {OURS: [], RELEASE: []}
    for _ in range(args.evaluations):
        for name, score in (
            (OURS, lambda: score_as_we_do(scorers, samples)),
            (RELEASE, lambda: score_as_release(args.root, samples, device)),
        ):
            started = time.perf_counter()
            score()
            seconds[name].append(time.perf_counter() - started)
    means = {name: sum(values) / len(values) for name, values in seconds.items()}
    lines = [
        *result_head(
            "Scorers in the loop",
            f"{args.num_images} images, four scorers of {args.root}, {args.evaluations} evaluations each; "
            f"{device.type}, {torch.get_num_threads()} threads of {os.cpu_count()} cores",
        ),
        "| | seconds an evaluation | images a second |",
        "|---|---|---|",
        *(f"| {name} | {mean:.2f} | {args.num_images / mean:.1f} |" for name, mean in means.items()),
        "",
        f"Ratio: {means[RELEASE] / means[OURS]:.2f}",
    ]
    if args.run_dir:
        records = [json.loads(line) for line in (args.run_dir / "metrics.jsonl").read_text().splitlines()]
        spent = {kind: sum(r["seconds"] for r in records if (r["turn"] == "eval") == kind) for kind in (True, False)}
        count = sum(r["turn"] == "eval" for r in records)
        share = spent[True] / (spent[True] + spent[False])
        lines += [
            "",
            f"{args.run_dir}: {count} evaluations, {spent[True]:.0f} s of {sum(spent.values()):.0f} s, {share:.1%}",
        ]
    sys.stdout.write(write_result(args.out, "scorers", lines))


if __name__ == "__main__":
    main()
