"""Measures of a run's health: a few means of tensors that an update has anyway."""

import torch
from torch import Tensor

SATURATED = 4.0  # latents of all families have a standard deviation near 1: beyond 4 there is almost nothing


@torch.no_grad()
def sample_metrics(x_student: Tensor, x0_real: Tensor) -> dict[str, Tensor]:
    """Return the statistics of the student's samples, and those of the teacher's prediction of them.

    `latent_saturated` is the share of latents beyond `SATURATED`. Guidance widens the teacher's prediction, and noise
    smooths it, so the two standard deviations need not be equal. Their ratio keeps its value in a run that goes well,
    and grows if the student's samples leave what the teacher knows. Both arguments: [B, C, H, W].
    """
    x, real = x_student.float(), x0_real.float()
    (std, mean), (real_std, real_mean) = torch.std_mean(x), torch.std_mean(real)
    return {
        "latent_mean": mean,
        "latent_std": std,
        "latent_saturated": (x.abs() > SATURATED).float().mean(),
        "latent_mean_real": real_mean,
        "latent_std_real": real_std,
    }


@torch.no_grad()
def anchor_metrics(prediction: Tensor, target: Tensor, weight: float) -> dict[str, Tensor]:
    """Return how far the student's first step is from the anchor, and how strongly the diversity loss pulls it.

    `anchor_error` is mse(prediction, target) / mean(target^2): 0 at the anchor. `div_gradient_norm` is the norm of
    d(lambda * loss * numel) / d prediction of a sample, the mean over samples: the counterpart of `dmd_gradient_norm`.
    Their ratio says which loss is stronger where each enters the network. The gradients on parameters would cost a
    backward pass more. Both tensors: [B, C, H, W].
    """
    error = prediction.float() - target.float()
    return {
        "anchor_error": error.square().mean() / target.float().square().mean().clamp_min(1e-12),
        "div_gradient_norm": 2 * weight * error.flatten(1).norm(dim=1).mean(),
    }
