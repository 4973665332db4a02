"""Learning rates as pure functions of the update, so that a resumed run needs no schedule's state.

Names and curves are those of diffusers' `get_scheduler`: a linear warm-up from 0, then constant, or down along a line,
half a cosine, several of them, or a power of the line. Each would reach its end one update after the last.
"""

import math

from dpdmd.config.options import POLYNOMIAL_END, OptimConfig


def lr_factor(
    name: str, update: int, total: int, warmup: int, *, cycles: int = 1, power: float = 1.0, end: float = 0.0
) -> float:
    """Return the share of the full learning rate at `update` (0 for the first) of `total`.

    Args:
        cycles: half cosines of "cosine_with_restarts".
        power: of "polynomial".
        end: share at the end of "polynomial".

    Raises:
        ValueError: unknown `name`.
    """
    if update < warmup:
        return update / warmup
    progress = (update - warmup) / max(1, total - warmup)
    if name in ("constant", "constant_with_warmup"):
        return 1.0
    if name == "linear":
        return max(0.0, 1.0 - progress)
    if name == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    if name == "cosine_with_restarts":
        return 0.0 if progress >= 1 else max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((cycles * progress) % 1.0))))
    if name == "polynomial":
        return end + (1.0 - end) * max(0.0, 1.0 - progress) ** power
    raise ValueError(f"no learning-rate schedule {name!r}")


def lr_share(full: float, config: OptimConfig, update: int, total: int) -> float:
    """Return the share of the learning rate `full` at one network's `update` of its `total`, by the flags."""
    return lr_factor(
        config.lr_scheduler,
        update,
        total,
        config.lr_warmup_steps,
        cycles=config.lr_num_cycles,
        power=config.lr_power,
        end=POLYNOMIAL_END / full,
    )


def learning_rate(full: float, config: OptimConfig, update: int, total: int) -> float:
    """Return the learning rate at one network's `update` of its `total`; `full` is the rate before the schedule."""
    return full * lr_share(full, config, update, total)
