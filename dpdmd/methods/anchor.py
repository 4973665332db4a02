"""The anchor: the teacher's grid up to it, and the velocity from the noise straight to it (paper, section 3)."""

import torch
from torch import Tensor

from dpdmd.models.noise_schedule import Predictor, Schedule
from dpdmd.sampling.rollout import rollout


def anchor_grid(teacher_sigmas: Tensor, k_anchor: int, num_steps: int | None = None) -> Tensor:
    """The sigmas on the way to the anchor: the teacher's first K steps, or `num_steps` that end at the same t_k.

    The coarser grid takes every so manieth of the teacher's own sigmas, [num_steps + 1].
    """
    if num_steps is None:
        return teacher_sigmas[: k_anchor + 1]
    places = torch.linspace(0, k_anchor, num_steps + 1).round().long().tolist()  # on the host
    return torch.stack([teacher_sigmas[place] for place in places])


@torch.no_grad()
def anchor_target(
    teacher: Predictor,
    schedule: Schedule,
    eps: Tensor,
    teacher_sigmas: Tensor,
    k_anchor: int,
    num_steps: int | None = None,
) -> Tensor:
    """Target of the student's first step, [B, C, H, W], in the space in which the schedule compares (`anchor`).

    z_k is the latent after `k_anchor` steps of the guided teacher's own grid from `eps`, so its sigma is that grid's
    after step K (0 when K is all of them); a flow's target is the one step that carries eps there, (eps - z_k) /
    (1 - t_k) (paper, section 4.1). With `num_steps` the teacher goes there in fewer, longer steps.
    """
    z_k = rollout(teacher, schedule, eps, anchor_grid(teacher_sigmas, k_anchor, num_steps)).x
    return schedule.anchor(teacher, eps, z_k, teacher_sigmas[0], teacher_sigmas[k_anchor])
