"""One update of one network, unless a figure of its step is nan or infinite."""

from typing import Any

from torch import Tensor

from dpdmd.distributed import collectives
from dpdmd.training.build import Trained
from dpdmd.training.step_record import Figures


def skips_on_device(optimizer: Any) -> bool:
    """Whether the optimizer's kernel withholds an update by itself: torch's fused ones, made so for mixed precision."""
    return all(group.get("fused") for group in collectives.unwrapped(optimizer).param_groups)


def update(trained: Trained, figures: Figures, norm: Tensor, learning_rate: float, max_norm: float) -> None:
    """Clip gradients of the global `norm` to `max_norm` and step; nothing moves if one of `figures` is not finite.

    Where the optimizer can skip by itself, the host does not wait to know: neither weights nor moments nor their
    count change then. Elsewhere the host reads the figures first.
    """
    optimizer = collectives.unwrapped(trained.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    if skips_on_device(optimizer):
        optimizer.grad_scale, optimizer.found_inf = None, figures.nonfinite
    elif not figures.are_finite():
        return
    collectives.clip_gradients(trained.parameters, max_norm, norm)
    trained.optimizer.step()
