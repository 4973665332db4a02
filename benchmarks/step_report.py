"""The results of benchmarks/train_step.py as tables, and as ratios with intervals."""

import statistics
from dataclasses import dataclass

import numpy as np
import release_training

FLOOR, OURS, RELEASE = "bare network calls", "dpdmd.train", "the release"
EVALUATION, TEACHER, SAVING = "evaluation, dpdmd.train", "teacher's row, dpdmd.train", "checkpoint, dpdmd.train"
RELEASE_EVALUATION = "evaluation, the release"
FAKE_CALLS, STUDENT_CALLS = "fake-score updates, calls", "student update, calls"
IN_CYCLE = (FAKE_CALLS, STUDENT_CALLS, "AdamW", "norm and clipping", "text, once a step", "noise")


@dataclass(frozen=True)
class Measured:
    """The measurements on one machine.

    Attributes:
        seconds: of each round of each variant and part, by name.
        variants: names of our variants, the one without further flags first.
        cycle_flops: FLOPs of a cycle without further flags, as torch counts them.
        matrix_rate: FLOPs per second of a matrix product.
        cycle_length, total_steps, eval_every: in steps.
        images, release_images: of one evaluation.
    """

    seconds: dict[str, list[float]]
    variants: list[str]
    cycle_flops: float
    matrix_rate: float
    peak_gb: float
    on_cuda: bool
    cycle_length: int
    total_steps: int
    eval_every: int
    images: int
    release_images: int

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, above: str, below: str) -> str:
        """Return the median of the rounds' ratios, with a 95% bootstrap interval over the rounds."""
        ratios = np.array(self.seconds[above]) / np.array(self.seconds[below])
        picks = np.random.default_rng(0).integers(len(ratios), size=(2000, len(ratios)))
        return f"{np.median(ratios):.2f} {_interval(np.median(ratios[picks], axis=1))}"

    def whole_run(self, ours: str, release_eval_every: int) -> str:
        """Return the ratio of the release's run to ours, by medians; the bootstrap resamples each part's rounds."""
        draw = np.random.default_rng(0)

        def median(name: str) -> np.ndarray:
            values = np.array(self.seconds[name])
            return np.median(values[draw.integers(len(values), size=(2000, len(values)))], axis=1)

        cycles, count = self.total_steps / self.cycle_length, self.num_checkpoints
        above = cycles * median(RELEASE) + self.total_steps / release_eval_every * median(RELEASE_EVALUATION)
        below = cycles * median(ours) + (count + 1) * median(EVALUATION) + count * median(SAVING) + median(TEACHER)
        return f"{np.median(above / below):.2f} {_interval(above / below)}"

    @property
    def num_checkpoints(self) -> int:
        return -(-self.total_steps // self.eval_every)


def _interval(found: np.ndarray) -> str:
    low, high = np.quantile(found, (0.025, 0.975))
    return f"[{low:.2f}, {high:.2f}]"


def cycle_lines(found: Measured) -> list[str]:
    """Return the table of a cycle, and its ratios."""
    rest = found.median(OURS) - sum(found.median(name) for name in IN_CYCLE)
    reached = found.cycle_flops / found.median(OURS)
    memory = "allocated on the device" if found.on_cuda else "the process's resident set"
    return [
        "| a cycle | seconds |",
        "|---|---|",
        *(f"| {name} | {found.median(name):.3f} |" for name in (FLOOR, RELEASE, *found.variants)),
        *(f"| of {OURS}: {name} | {found.median(name):.3f} |" for name in IN_CYCLE),
        f"| of {OURS}: the rest, such as losses and records | {rest:.3f} |",
        "",
        f"- {OURS} to the floor: {found.ratio(OURS, FLOOR)}",
        *(f"- {RELEASE} to {name}: {found.ratio(RELEASE, name)}" for name in found.variants),
        *(f"- {OURS} to {name}: {found.ratio(OURS, name)}" for name in found.variants[1:]),
        f"- {found.cycle_flops / 1e9:.1f} GFLOP a cycle of {OURS} as torch counts them, {reached / 1e9:.1f} GFLOP/s: "
        f"MFU {reached / found.matrix_rate:.1%} of a matrix product's {found.matrix_rate / 1e9:.1f} GFLOP/s",
        f"- peak memory {found.peak_gb:.2f} GB, {memory}: the networks of all variants, and the scorers",
    ]


def run_lines(found: Measured) -> list[str]:
    """Return the table of what a run has beside its cycles, and the ratios of a whole run."""
    every, count = release_training.EVAL_EVERY, found.num_checkpoints
    rows = [
        (EVALUATION, count + 1, found.images),
        (TEACHER, 1, found.images),
        (SAVING, count, ""),
        (RELEASE_EVALUATION, found.total_steps // every, found.release_images),
    ]
    return [
        f"| a run of {found.total_steps} steps | seconds | times | images |",
        "|---|---|---|---|",
        *(f"| {name} | {found.median(name):.2f} | {times} | {images} |" for name, times, images in rows),
        "",
        *(
            f"- a whole run, {RELEASE} to {name}: {found.whole_run(name, every)}; "
            f"if the release evaluated as seldom as ours: {found.whole_run(name, found.eval_every)}"
            for name in found.variants
        ),
    ]
