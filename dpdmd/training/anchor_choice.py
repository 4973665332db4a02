"""`--k_anchor auto`: K measured on the teacher, once before a run."""

import json
from typing import Any

from dpdmd.config.anchor_search import AUTO, NUM_PROMPTS, NUM_SEEDS, THRESHOLD
from dpdmd.config.method_table import METHODS
from dpdmd.data.prompts import fingerprint, pool_prompts
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
from dpdmd.models.registry import identify_teacher
from dpdmd.sampling.sampler import Sampler, SamplerSettings
from dpdmd.training.preflight import RunSetup
from dpdmd.utils.atomic_files import write_json
from dpdmd.utils.logging import logger
from dpdmd.utils.text_files import read_json


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
    found, of = collectives.call_on_main(accelerator, lambda: _read_found(setup, settings))
    if found is None:
        curves = _measure(setup, accelerator, sampler, encoder, settings)
        found = smallest_decided(settings.steps, mean_decidedness(curves), THRESHOLD, method.anchor_steps)
        content = {"k_anchor": found, "of": of}
        collectives.call_on_main(accelerator, lambda: write_json(setup.folder.anchor, content))
    method.k_anchor = collectives.broadcast_from_main(accelerator, found)
    if accelerator.is_main_process:
        logger.info(
            "--k_anchor auto: %d of %d steps, the first with decidedness %.2f or more (%d prompts x %d seeds, in %s)",
            *(method.k_anchor, method.teacher_infer_steps, THRESHOLD, _num_prompts(setup), NUM_SEEDS, settings.space),
        )


def _read_found(setup: RunSetup, settings: CurveSettings) -> tuple[int | None, dict[str, Any]]:
    """Return the K that a start before the first checkpoint has found, else None; and all that it depends on.

    Raises:
        ValueError: the teacher's files cannot be read.
    """
    model, method, data = setup.config.model, setup.config.method, setup.config.data
    of = {
        "teacher": identify_teacher(model),
        "prompts": fingerprint(setup.prompts, setup.weights),
        "curve": {**vars(settings), "num_prompts": _num_prompts(setup)},
        "steps": [method.teacher_infer_steps, method.anchor_steps],
        "guidance_scale": method.teacher_guidance_scale,
        "size": next(iter(data.image_sizes)),
        "max_sequence_length": data.max_sequence_length,
        "bf16": setup.config.optim.bf16,
        "precisions": [model.base_precision, model.text_encoder_precision],
        "threshold": THRESHOLD,
    }
    of = json.loads(json.dumps(of))
    try:
        saved = read_json(setup.folder.anchor)
        found = saved["k_anchor"] if saved["of"] == of else None
    except (ValueError, KeyError, TypeError):
        found = None
    return found if type(found) is int and 1 <= found <= method.teacher_infer_steps else None, of


def _num_prompts(setup: RunSetup) -> int:
    return min(NUM_PROMPTS, len(setup.prompts))


def _measure(
    setup: RunSetup, accelerator: Any, sampler: Sampler, encoder: TextEncoder, settings: CurveSettings
) -> list[Curve]:
    """Return the curves of the run's first prompts on every rank. Each rank measures its share of them."""
    prompts = list(enumerate(pool_prompts(setup.prompts, settings.seed, _num_prompts(setup), setup.weights)))
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
