"""Measure the quality of the small world's scorers: `python -m dpdmd.shapes.measure_scorers`."""

from dpdmd.utils import signals

if __name__ == "__main__":  # before the imports below, which take seconds
    signals.install_exit_handlers("dpdmd.shapes.measure_scorers")

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dpdmd.config.scorer_table import IN_LOOP_SCORERS
from dpdmd.evaluation.diversity import diversity_per_image
from dpdmd.evaluation.scorer_files import check_scorer_paths
from dpdmd.evaluation.scorers import build_scorer
from dpdmd.evaluation.scorers.base import Sample, Scorer
from dpdmd.evaluation.scoring import score_batch
from dpdmd.shapes.measure import check_replaces_result, write_result
from dpdmd.shapes.oracle import read_images, variety
from dpdmd.shapes.world import ATTRIBUTES, Scene, caption, render, sample_scene
from dpdmd.utils.image_grid import to_pil
from dpdmd.utils.paths import check_writable_file, user_path
from dpdmd.utils.programs import make_parser, run_program
from dpdmd.utils.rng import numpy_generator

TEST_SEED = 1_000  # no scorer was trained on its scenes
NUM_PAIRS, NUM_SETS, SET_SIZE = 500, 80, 32
SCORERS = {  # flag -> path below weights/tiny
    "clip_path": "clip",
    "clip_score_path": "clip",
    "dino_path": "dinov2",
    "pick_processor_path": "pickscore",
    "pick_model_path": "pickscore",
    "ir_model_path": "ImageReward/ImageReward.pt",
    "ir_med_config": "ImageReward/med_config.json",
}


def load(root: Path) -> dict[str, Scorer]:
    """Load the five in-loop scorers below `root`.

    Raises:
        ValueError: a scorer is missing.
    """
    flags = {flag: str(root / path) for flag, path in SCORERS.items()}
    paths = check_scorer_paths(flags, IN_LOOP_SCORERS)
    return {name: build_scorer(name, paths[name], torch.device("cpu")) for name in IN_LOOP_SCORERS}


def images_of(scenes: list[Scene]) -> list:
    """Render scenes as 8-bit images, as in a file."""
    return to_pil(torch.from_numpy(render(scenes)))


def pair_accuracy(scorer: Scorer, count: int = NUM_PAIRS) -> float:
    """Return the share of pairs in which the image that matches a caption scores above one that does not."""
    better, worse = [], []
    index = 0
    while len(better) < count:
        right, wrong = sample_scene(TEST_SEED, index), sample_scene(TEST_SEED + 1, index)
        keep = numpy_generator(TEST_SEED, "pair caption", index).random(len(ATTRIBUTES)) < 0.5
        named = {name: getattr(right, name) for name, kept in zip(ATTRIBUTES, keep, strict=True) if kept}
        index += 1
        if all(getattr(wrong, name) == value for name, value in named.items()):
            continue  # matches both
        for scene, side in ((right, better), (wrong, worse)):
            side.append(Sample(images_of([scene])[0], caption(named), (len(side), 0)))
    values = [[row.values[scorer.name] for row in score_batch(side, [scorer])] for side in (better, worse)]
    return float(np.mean([a > b for a, b in zip(*values, strict=True)]))


def retrieval(scorer: Scorer, count: int = 48) -> float:
    """Return the share of images whose full caption scores highest among `count` different captions."""
    scenes: dict[str, Scene] = {}
    for index in range(10 * count):
        scene = sample_scene(TEST_SEED + 2, index)
        scenes.setdefault(caption({name: getattr(scene, name) for name in ATTRIBUTES}), scene)
    captions = list(scenes)[:count]
    right = 0
    for image, own in zip(images_of([scenes[c] for c in captions]), captions, strict=True):
        rows = score_batch([Sample(image, text, (0, i)) for i, text in enumerate(captions)], [scorer])
        right += captions[int(np.argmax([row.values[scorer.name] for row in rows]))] == own
    return right / count


def graded_sets(count: int = NUM_SETS) -> list[list[Scene]]:
    """Return sets of scenes of graded diversity: in each set an attribute has 1 to all of its values."""
    sets = []
    for number in range(count):
        random = numpy_generator(TEST_SEED, "graded set", number)
        allowed = {
            name: random.permutation(values)[: random.integers(1, len(values) + 1)]
            for name, values in ATTRIBUTES.items()
        }
        sets.append(
            [
                Scene(
                    **{name: str(random.choice(values)) for name, values in allowed.items()},
                    position=(float(random.random()), float(random.random())),
                )
                for _ in range(SET_SIZE)
            ]
        )
    return sets


def oracle_entropy(scenes: list[Scene]) -> float:
    """Return the oracle's entropy, relative to the world's, averaged over attributes."""
    reading = read_images(render(scenes))
    entropies = [variety(reading.values[name], len(values))[1] for name, values in ATTRIBUTES.items()]
    return float(np.mean(entropies))


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the rank correlation."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def agreement_with_oracle(scorer: Scorer, sets: list[list[Scene]]) -> float:
    """Return the rank correlation of the scorer's diversity with the oracle's entropy over sets of scenes."""
    diversities = []
    for scenes in tqdm(sets, desc=scorer.name):
        rows = score_batch([Sample(p, "", (0, i)) for i, p in enumerate(images_of(scenes))], [scorer])
        diversities.append(np.mean(diversity_per_image(torch.stack([row.features[scorer.name] for row in rows]))))
    return spearman(diversities, [oracle_entropy(scenes) for scenes in sets])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the scorers. Return the exit status: 2 for wrong input, 1 if the metrics cannot be written."""
    parser = make_parser("dpdmd.shapes.measure_scorers", __doc__)
    parser.add_argument("--root", type=user_path, default=Path("weights/tiny"), help="(default: %(default)s)")
    parser.add_argument("--out", type=user_path, help="also write the metrics to this JSON file")
    args = parser.parse_args(argv)
    return run_program("dpdmd.shapes.measure_scorers", lambda: _measure(args.root, args.out))


def _measure(root: Path, out: Path | None) -> None:
    if out:
        check_writable_file("--out", out)
        check_replaces_result(out, lambda found: all(isinstance(each, float) for each in found.values()))
    scorers = load(root)
    metrics = {
        f"{name}: true against false images": pair_accuracy(scorers[name])
        for name in ("clip_score", "pickscore", "imagereward")
    }
    metrics["clip_score: own caption of 48 found"] = retrieval(scorers["clip_score"])
    for name in ("div_clip", "div_dino"):
        metrics[f"{name}: Spearman with the oracle's entropy"] = agreement_with_oracle(scorers[name], graded_sets())
    sys.stdout.write("\n".join(f"{name:50} {value:.3f}" for name, value in metrics.items()) + "\n")
    if out:
        write_result(out, metrics)


if __name__ == "__main__":
    sys.exit(signals.final_status(main()))
