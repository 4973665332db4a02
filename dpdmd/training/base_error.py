"""The error of a quantised base (`--base_precision`): its guided prediction beside that of the base as it is stored."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dpdmd.config import Config
from dpdmd.methods.context import DistillationContext, MicroBatch
from dpdmd.methods.networks import blocks_owner
from dpdmd.models.quantization import original_weights
from dpdmd.models.tensor_files import open_weights
from dpdmd.models.weight_files import DIFFUSERS_STEM
from dpdmd.utils.logging import logger

LIMIT = 0.05  # above it, a run warns


@contextmanager
def unquantized_base(config: Config, run: DistillationContext) -> Iterator[None]:
    """Run calls of the three networks on the base before its quantisation (`original_weights`)."""
    folder = Path(config.model.teacher_id) / run.family.layout.network
    with original_weights(blocks_owner(run.networks.teacher), open_weights(folder, DIFFUSERS_STEM)):
        yield


@torch.no_grad()
def measure_base_error(config: Config, run: DistillationContext, batch: MicroBatch) -> float:
    """Return the relative error |v' - v| / |v| of the guided teacher on the quantised base.

    Of the first sample of a micro-batch, at two noise levels: its start noise, and the middle of the teacher's grid,
    with the noise added to the x0 that the unquantised teacher predicts from the start noise. The larger error counts.
    """
    predict, grid = run.teacher(batch.text.rows(0, 1)), run.teacher_sigmas
    start, middle = grid[:1], grid[len(grid) // 2 :][:1]
    z = eps = run.start_noise(batch)[:1]
    errors = []
    for sigma in (start, middle):
        with unquantized_base(config, run):
            exact = predict(z, sigma)
        errors.append(((predict(z, sigma) - exact).norm() / exact.norm()).item())
        z = run.schedule.add_noise(run.schedule.to_x0(z, exact, sigma), eps, middle)
    return max(errors)


def report_base_error(config: Config, run: DistillationContext, batch: MicroBatch) -> float:
    """Measure the error and log it, as a warning if it is large; return it."""
    error = measure_base_error(config, run, batch)
    (logger.warning if error > LIMIT else logger.info)("%s", describe_base_error(config.model.base_precision, error))
    return error


def describe_base_error(precision: str, error: float) -> str:
    """Return the error in words, with what to do if it is large."""
    found = f"--base_precision {precision}: the guided prediction is {error:.1%} off that of the unquantised base"
    if error <= LIMIT:
        return found
    better = "int8 is closer, and bf16 is exact" if precision != "int8" else "bf16 is exact"
    return f"{found}, more than {LIMIT:.0%}: the student learns from a changed teacher; {better}"
