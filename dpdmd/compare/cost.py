"""The cost of a sweep's trainings in network calls, from their options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpdmd.config import from_dict
from dpdmd.config.anchor_search import AUTO
from dpdmd.config.method_table import METHODS
from dpdmd.config.options import DEFAULT_MAX_STEPS
from dpdmd.methods.decidedness import anchor_calls
from dpdmd.methods.network_calls import CallCounter
from dpdmd.models.registry import LAYOUTS


def calls_of_training(options: Mapping[str, Any]) -> int | None:
    """Return the network calls of a training (`dpdmd.methods.network_calls`), each of one sample, in each process.

    Return None if only the run knows them: with `--max_epoch` or, for a method with an anchor, `--k_anchor auto`, or if
    the teacher is not on disk.
    """
    config = from_dict(dict(options), "")
    method, layout = config.method, LAYOUTS[config.model.family]
    has_anchor = "k_anchor" in METHODS[method.method].options
    if config.run.max_epoch or (has_anchor and method.k_anchor == AUTO):
        return None
    try:
        schedule = layout.read_schedule(Path(config.model.teacher_id)).at_size(*next(iter(config.data.image_sizes)))
    except (OSError, ValueError):
        return None
    anchor = 0
    if has_anchor:
        sigmas = schedule.default_sigmas(method.teacher_infer_steps)
        anchor = anchor_calls(schedule, sigmas, method.k_anchor, method.anchor_steps)
    counter = CallCounter(method, config.run.seed, anchor, layout.guidance)
    samples = config.optim.batch_size * config.optim.grad_accum
    return samples * counter.of_run(config.run.max_steps or DEFAULT_MAX_STEPS)
