"""`--k_anchor auto`: K measured on the teacher, once before a run."""

from typing import Any

from dpdmd.config.anchor_search import AUTO, NUM_PROMPTS, NUM_SEEDS, THRESHOLD
from dpdmd.config.method_table import METHODS
from dpdmd.data.prompts import pool_prompts
from dpdmd.distributed import collectives
from dpdmd.methods.context import DistillationContext
from dpdmd.methods.decidedness import (
    Curve,
    CurveSettings,
    cheap_space,
    curve_steps,
    mean_decidedness,
    measure_curves,
    smallest_decided,
)
from dpdmd.models.base import ImageDecoder, TextEncoder
from dpdmd.sampling.sampler import Sampler, SamplerSettings
from dpdmd.training.preflight import RunSetup
from dpdmd.utils.logging import logger


def set_k_anchor(
    setup: RunSetup, accelerator: Any, run: DistillationContext, encoder: TextEncoder, decoder: ImageDecoder
) -> None:
    """Replace `--k_anchor auto` by the measured K, the same on every rank, if the method has an anchor. Collective.

    A run that resumes already has the K of its checkpoint.

    Raises:
        ValueError: the teacher's samples are not finite, or do not vary with the seed.
    """
    method = setup.config.method
    if method.k_anchor != AUTO or "k_anchor" not in METHODS[method.method].options:
        return
    size = next(iter(setup.config.data.image_sizes))
    settings = CurveSettings(
        curve_steps(method.teacher_infer_steps), cheap_space(*size), NUM_SEEDS, run.seed, setup.config.optim.batch_size
    )
    grid = SamplerSettings(run.teacher_sigmas, method.teacher_guidance_scale, *size)
    sampler = Sampler(run.family, run.networks.teacher, run.schedule, decoder, run.null, grid)
    curves = _measure(setup, accelerator, sampler, encoder, settings)
    k_anchor = smallest_decided(settings.steps, mean_decidedness(curves), THRESHOLD, method.anchor_steps)
    method.k_anchor = collectives.broadcast_from_main(accelerator, k_anchor)
    if accelerator.is_main_process:
        logger.info(
            "--k_anchor auto: %d of %d steps, the first with decidedness %.2f or more (%d prompts x %d seeds, in %s)",
            *(method.k_anchor, method.teacher_infer_steps, THRESHOLD, len(curves), NUM_SEEDS, settings.space),
        )


def _measure(
    setup: RunSetup, accelerator: Any, sampler: Sampler, encoder: TextEncoder, settings: CurveSettings
) -> list[Curve]:
    """Return the curves of the run's first prompts on every rank. Each rank measures its share of them."""
    num_prompts = min(NUM_PROMPTS, len(setup.prompts))
    prompts = list(enumerate(pool_prompts(setup.prompts, settings.seed, num_prompts, setup.weights)))
    mine = collectives.share(prompts, accelerator.process_index, accelerator.num_processes)
    curves, failure = {}, ""
    try:
        curves = measure_curves(sampler, encoder, mine, settings, progress=accelerator.is_main_process)
    except ValueError as error:
        failure = f"--k_anchor auto: --teacher_id {setup.config.model.teacher_id}: {error}"
    shares = collectives.gather(accelerator, [(curves, failure)])
    for _, failure in shares:
        if failure:
            raise ValueError(failure)
    by_prompt = {index: curve for share, _ in shares for index, curve in share.items()}
    return [by_prompt[index] for index, _ in prompts]
