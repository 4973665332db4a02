"""The anchor of the diversity loss: K steps of the teacher, and the target of the student's first step."""

import torch
from torch import Tensor

from dpdmd.models.noise_schedule import Predictor, Schedule
from dpdmd.sampling.rollout import rollout


def anchor_grid(teacher_sigmas: Tensor, k_anchor: int, num_steps: int | None = None) -> Tensor:
    """Return the sigmas from the start noise to the anchor.

    Without `num_steps` these are the teacher's own first K steps, [K + 1]. With `num_steps` they are a subset of these
    sigmas, evenly spaced by index, with the same first and last sigma, [num_steps + 1].
    """
    if num_steps is None:
        return teacher_sigmas[: k_anchor + 1]
    indices = torch.linspace(0, k_anchor, num_steps + 1).round().long().tolist()  # on the host
    return torch.stack([teacher_sigmas[index] for index in indices])


@torch.no_grad()
def anchor_target(
    teacher: Predictor,
    schedule: Schedule,
    eps: Tensor,
    teacher_sigmas: Tensor,
    k_anchor: int,
    num_steps: int | None = None,
) -> Tensor:
    """Return the target of the student's first step, [B, C, H, W] (paper, section 4.1; in x0: appendix C).

    v_target = (eps - z_k) / (1 - t_k), for a flow

    `Schedule.anchor` has the form of each schedule.

    Args:
        teacher: the guided teacher with its prompts bound.
        eps: start noise, [B, C, H, W].
        teacher_sigmas: the teacher's grid, [N + 1]. t_k is its sigma after step K, 0 if K = N.
        k_anchor: K, the number of teacher steps from eps to z_k.
        num_steps: take so many longer steps to the same t_k instead.
    """
    z_k = rollout(teacher, schedule, eps, anchor_grid(teacher_sigmas, k_anchor, num_steps)).x
    at_end = k_anchor == len(teacher_sigmas) - 1
    return schedule.anchor(teacher, eps, z_k, teacher_sigmas[0], teacher_sigmas[k_anchor], at_end=at_end)
