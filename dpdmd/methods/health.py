"""Measures of a run's health: a few means of tensors that an update has anyway."""

import torch
from torch import Tensor

SATURATED = 4.0  # latents of all families have a standard deviation near 1: beyond 4 there is almost nothing


@torch.no_grad()
def sample_metrics(x_student: Tensor, x0_real: Tensor) -> dict[str, Tensor]:
    """Return the statistics of the student's samples, and those of the teacher's prediction of them.

    Each is a mean over samples, so it does not depend on how processes divide a batch. `latent_saturated` is the share
    of latents beyond `SATURATED`. Guidance widens the teacher's prediction, and noise smooths it, so the two standard
    deviations need not be equal. Their ratio keeps its value in a run that goes well, and grows if the student's
    samples leave what the teacher knows. Both arguments: [B, C, H, W].
    """
    x, real = x_student.flatten(1).float(), x0_real.flatten(1).float()
    return {
        "latent_mean": x.mean(),
        "latent_std": x.std(dim=1).mean(),
        "latent_saturated": (x.abs() > SATURATED).float().mean(),
        "latent_mean_real": real.mean(),
        "latent_std_real": real.std(dim=1).mean(),
    }


@torch.no_grad()
def anchor_metrics(prediction: Tensor, target: Tensor, weight: float) -> dict[str, Tensor]:
    """Return how far the student's first step is from the anchor, and how strongly the diversity loss pulls it.

    `anchor_error` is |prediction - target|^2 / |target|^2 of a sample: 0 at the anchor. `div_gradient_norm` is the norm
    of d(lambda * loss * numel) / d prediction of a sample: the counterpart of `dmd_gradient_norm`. Their ratio says
    which loss is stronger where each enters the network. The gradients on parameters would cost a backward pass more.
    Both are means over samples; both tensors: [B, C, H, W].
    """
    error = (prediction.float() - target.float()).flatten(1).norm(dim=1)
    return {
        "anchor_error": (error / target.flatten(1).float().norm(dim=1).clamp_min(1e-6)).square().mean(),
        "div_gradient_norm": 2 * weight * error.mean(),
    }
