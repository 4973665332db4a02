"""Learning rates as pure functions of the update, so that a resumed run needs no schedule's state.

Names and curves are those of diffusers' `get_scheduler`: a linear warm-up from 0, then constant, or down along a line
or half a cosine that would reach 0 one update after the last.
"""

import math

from dpdmd.config.options import OptimConfig


def lr_factor(name: str, update: int, total: int, warmup: int) -> float:
    """Return the share of the full learning rate at `update` (0 for the first) of `total`.

    Raises:
        ValueError: unknown `name`.
    """
    if update < warmup:
        return update / warmup
    progress = (update - warmup) / max(1, total - warmup)
    if name == "constant":
        return 1.0
    if name == "linear":
        return max(0.0, 1.0 - progress)
    if name == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    raise ValueError(f"no learning-rate schedule {name!r}")


def learning_rate(full: float, config: OptimConfig, update: int, total: int) -> float:
    """Return the learning rate at one network's `update` of its `total`; `full` is the rate before the schedule."""
    return full * lr_factor(config.lr_scheduler, update, total, config.lr_warmup_steps)
