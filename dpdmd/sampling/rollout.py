"""The one guidance formula and the one sampler loop: teacher anchors, student roll-outs and images all run here."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dpdmd.models.noise_schedule import Predictor, Schedule


@dataclass(frozen=True)
class Rollout:
    """End of a trajectory, and how it began.

    Attributes:
        x: latent at the last sigma of the grid, [B, C, H, W]; x0 where the grid ends in 0.
        first_prediction: the network's prediction at the first sigma, [B, C, H, W], still in the graph.
    """

    x: Tensor
    first_prediction: Tensor


def rollout(
    predict: Predictor,
    schedule: Schedule,
    z: Tensor,
    sigmas: Tensor,
    *,
    detach_first_step: bool = False,
    gradient_steps: Collection[int] | None = None,
    jump_at: int | None = None,
) -> Rollout:
    """Run the ODE sampler from `z` at sigmas[0] along the whole grid `sigmas` [N + 1].

    Args:
        detach_first_step: the latent is detached after step 1, so a loss on `x` does not reach the first prediction
            (paper, section 4.2: this is what keeps the DMD gradient from undoing the diversity loss).
        gradient_steps: steps (0 for the first) whose predictions keep gradient; without it all. The others are
            constants, computed without a graph, so a loss on `x` reaches a kept prediction only through the latent
            that each step adds to: by its own step of sigma, and through later kept predictions.
        jump_at: at this step `x` is the x0 that the student predicts, and the sampler ends there; the latent that it
            predicts from is detached (DMD2's simulation, section 4.5, along the ODE).
    """
    first_prediction = None
    for index, (sigma_s, sigma_t) in enumerate(pairwise(sigmas)):
        if jump_at == index:
            z = z.detach()
        keep = torch.is_grad_enabled() and (gradient_steps is None or index in gradient_steps)
        with torch.set_grad_enabled(keep):
            prediction = predict(z, sigma_s.expand(len(z)))
        if first_prediction is None:
            first_prediction = prediction
        if jump_at == index:
            return Rollout(schedule.to_x0(z, prediction, sigma_s), first_prediction)
        z = schedule.step(z, prediction, sigma_s, sigma_t)
        if index == 0 and detach_first_step:
            z = z.detach()
    return Rollout(z, first_prediction)
