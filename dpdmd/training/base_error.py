"""The error of a quantised base (`--base_precision`): the guided prediction beside that of the base as it is stored."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpdmd.config import Config
from dpdmd.methods.context import DistillationContext, MicroBatch
from dpdmd.methods.networks import blocks_owner
from dpdmd.models.quantization import guided_error, original_weights
from dpdmd.models.tensor_files import Weights, open_weights
from dpdmd.models.weight_files import DIFFUSERS_STEM
from dpdmd.utils.logging import logger

LIMIT = 0.05  # above it, a run warns


def _stored(config: Config, run: DistillationContext) -> Weights:
    """Open the weights of the base as they are stored."""
    return open_weights(Path(config.model.teacher_id) / run.family.layout.network, DIFFUSERS_STEM)


@contextmanager
def unquantized_base(config: Config, run: DistillationContext) -> Iterator[None]:
    """Run calls of the three networks on the base before its quantisation (`original_weights`)."""
    with original_weights(blocks_owner(run.networks.teacher), _stored(config, run)):
        yield


def report_base_error(config: Config, run: DistillationContext, batch: MicroBatch) -> float:
    """Measure the error on the first sample of a micro-batch, and log it, as a warning if it is large; return it."""
    base, weights = blocks_owner(run.networks.teacher), _stored(config, run)
    run = run.at_size(batch.size_index)
    predict, eps = run.teacher(batch.text.rows(0, 1)), run.start_noise(batch)[:1]
    error = guided_error(predict, run.schedule, run.teacher_sigmas, eps, base, weights)
    (logger.warning if error > LIMIT else logger.info)("%s", describe_base_error(config.model.base_precision, error))
    return error


def describe_base_error(precision: str, error: float) -> str:
    """Return the error in words, with what to do if it is large."""
    found = f"--base_precision {precision}: the guided prediction is {error:.1%} off that of the unquantised base"
    if error <= LIMIT:
        return found
    better = "int8 is closer, and bf16 is exact" if precision != "int8" else "bf16 is exact"
    return f"{found}, more than {LIMIT:.0%}: the student learns from a changed teacher; {better}"
