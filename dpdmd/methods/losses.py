"""The losses of DP-DMD and of what it is compared with: pure functions of fp32 tensors, no network, no draw, no rank.

Shapes: latents and predictions are [B, C, H, W]; every loss is a scalar, the mean over all elements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NORMALIZERS = ("z_t", "x_student")
_SMALLEST_NORMALIZER = 1e-8  # only keeps 0 / 0 from being nan where x0_real is exactly what it is measured against


def diversity_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """mse(v_theta(eps, 1), v_target), paper section 4.1; of x0 in appendix C. Gradient to `prediction` only."""
    return F.mse_loss(prediction.float(), target.detach().float())


def fake_score_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Denoising on student samples: mse(v_fake(z_t, t), noise - x_theta), or of eps to noise; `target` detached."""
    return F.mse_loss(prediction.float(), target.detach().float())


@dataclass(frozen=True)
class DMDLoss:
    """`loss` is the scalar to minimise; `gradient` [B, C, H, W] is d(loss * numel) / d x_student, for diagnostics."""

    loss: Tensor
    gradient: Tensor


def dmd_loss(x_student: Tensor, x0_real: Tensor, x0_fake: Tensor, z_t: Tensor, normalizer: str = "z_t") -> DMDLoss:
    """Distribution matching (DMD2 equation 7, in x0 space): 0.5 mse(x, stopgrad(x - grad)).

    grad = (x0_fake - x0_real) / w, with w per sample the mean over C, H, W of |z_t - x0_real| ("z_t", the authors'
    code) or |x_student - x0_real| ("x_student", DMD2). Minimising moves x toward x0_real and away from x0_fake.
    All but `x_student` is detached. A nan element of the gradient counts as 0, as in DMD2, an infinite one
    stays and shows in the loss; inputs that are not finite are the caller's to refuse before the optimizer steps.

    Raises:
        ValueError: unknown `normalizer`.
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"normalizer must be one of {', '.join(NORMALIZERS)}, not {normalizer!r}")
    with torch.no_grad():
        real, fake, x = x0_real.float(), x0_fake.float(), x_student.float()
        reference = z_t.float() if normalizer == "z_t" else x
        weight = (reference - real).abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(_SMALLEST_NORMALIZER)
        gradient = torch.nan_to_num((fake - real) / weight, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        moved = x - gradient
    return DMDLoss(0.5 * F.mse_loss(x_student.float(), moved), gradient)


@torch.no_grad()
def score_error_cosine(x_student: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """Mean cosine between the real and the fake x0 errors, scalar: near 1 the fake score knows the student as well as
    the teacher does. A better thing to watch than the fake loss, which mostly measures the noise level."""
    real_error, fake_error = (x0_real - x_student).flatten(1), (x0_fake - x_student).flatten(1)
    return F.cosine_similarity(real_error.float(), fake_error.float()).mean()


def perceptual_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Distance of each image to its partner in the patch features of several layers, [B].

    features[l], others[l]: [B, T, D], a layer's T patches. The mean over layers and patches of 1 - cos(f, g), written
    0.5 |f / |f| - g / |g||^2, which is exactly 0 for equal features. Gradient to both.
    """
    layers = [
        0.5 * (F.normalize(ours.float(), dim=-1) - F.normalize(theirs.float(), dim=-1)).square().sum(-1).mean(-1)
        for ours, theirs in zip(features, others, strict=True)
    ]
    return torch.stack(layers).mean(0)


def generator_loss(logits: Tensor) -> Tensor:
    """Non-saturating logistic loss of the student, mean softplus(-D(z_t)) (DMD2, section 4.3, equation 4).

    logits: the discriminator's of noised student samples, [B, T]. Gradient to `logits`.
    """
    return F.softplus(-logits.float()).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss of the discriminator, mean softplus(-D(real)) + mean softplus(D(fake)) (DMD2, section 4.3).

    real, fake: logits of noised teacher and student samples, [B, T]; log 4 where it cannot tell them apart.
    """
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def backprop_through_constant(x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """loss(x), scalar, whose gradient with respect to `x` is there already: d loss / d x, as a constant.

    What `loss` runs through (a decoder, the fake score) gets no gradient, and its graph is gone before the student's
    own backward pass; only the order of computation differs from calling `loss` in the graph.
    """
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach() + ((x - x.detach()) * gradient).sum()
