"""The sampler loop, used for the student's roll-outs, the teacher's anchors and samples, and images."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dpdmd.models.noise_schedule import Predictor, Schedule


@dataclass(frozen=True)
class Rollout:
    """The end of a trajectory and its first prediction.

    Attributes:
        x: latent at the last sigma of the grid, [B, C, H, W]. If the grid ends at 0, this is x0.
        first_prediction: the network's prediction at the first sigma, [B, C, H, W], with its graph.
    """

    x: Tensor
    first_prediction: Tensor


def rollout(
    predict: Predictor,
    schedule: Schedule,
    eps: Tensor,
    sigmas: Tensor,
    *,
    detach_first_step: bool = False,
    gradient_steps: Collection[int] | None = None,
    jump_at: int | None = None,
) -> Rollout:
    """Run the ODE sampler from the start noise `eps` [B, C, H, W] along the grid `sigmas` [N + 1].

    Args:
        detach_first_step: detach the latent after step 1, so that a loss on `x` has no gradient to the first prediction
            (paper, section 4.2: otherwise the DMD gradient undoes the diversity loss).
        gradient_steps: steps, from 0, whose predictions keep gradient; None for all. The other predictions are computed
            without a graph. A loss on `x` then reaches a kept prediction only through the latents after it and the kept
            predictions that read them.
        jump_at: end the trajectory at this step with the student's x0 prediction as `x`. The latent before this step is
            detached (DMD2's simulation, section 4.5, along the ODE).
    """
    z, first_prediction = schedule.start(eps, sigmas[0]), None
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
