"""The losses of DP-DMD and of the compared methods: pure functions of tensors, computed in fp32.

Latents and predictions have the shape [B, C, H, W]. Every loss is a scalar, the mean over all elements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dpdmd.config.options import NORMALIZERS

_SMALLEST_NORMALIZER = 1e-8  # 0 / 0 would be nan if x0_real equals the tensor that it is compared with


def diversity_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the loss of the student's first step against the anchor (paper, section 4.1; in x0: appendix C).

    loss = mse(v_theta(eps, 1), v_target)

    Args:
        prediction: the student's velocity, or its x0, at the first sigma, [B, C, H, W].
        target: the same quantity of the teacher's anchor, [B, C, H, W], detached.
    """
    return F.mse_loss(prediction.float(), target.detach().float())


def fake_score_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the denoising loss of the fake score on student samples (paper, section 3).

    loss = mse(v_fake(z_t, t), noise - x_theta), or mse(eps_fake(z_t, t), noise)

    `Schedule.target` has the form of each schedule.

    Args:
        prediction: the fake score's prediction at z_t, [B, C, H, W].
        target: the prediction of a perfect network, [B, C, H, W], detached.
    """
    return F.mse_loss(prediction.float(), target.detach().float())


@dataclass(frozen=True)
class DMDLoss:
    """The DMD loss and its direction.

    Attributes:
        loss: scalar to minimise.
        gradient: d(loss * numel) / d x_student, [B, C, H, W], detached.
    """

    loss: Tensor
    gradient: Tensor


def dmd_loss(x_student: Tensor, x0_real: Tensor, x0_fake: Tensor, z_t: Tensor, normalizer: str = "z_t") -> DMDLoss:
    """Compute the distribution matching loss (paper, section 3; DMD2, equation 7) in x0 space.

    grad = (x0_fake - x0_real) / w
    loss = 0.5 mse(x_student, stopgrad(x_student - grad))

    Minimising the loss moves x_student toward x0_real and away from x0_fake. A nan element of grad counts as 0, as in
    DMD2. An infinite element stays, so that it shows in the loss.

    Args:
        x_student: the student's samples, [B, C, H, W]; the only argument that gets gradient.
        x0_real, x0_fake: x0 predictions of the teacher and of the fake score at `z_t`, [B, C, H, W].
        z_t: the noised samples, [B, C, H, W].
        normalizer: w of each sample is the mean over C, H, W of |z_t - x0_real| ("z_t", the authors' code) or of
            |x_student - x0_real| ("x_student", DMD2).

    Raises:
        ValueError: `normalizer` is unknown.
    """
    if normalizer not in NORMALIZERS:
        raise ValueError(f"normalizer must be one of {', '.join(NORMALIZERS)}, not {normalizer!r}")
    with torch.no_grad():
        real, fake, x = x0_real.float(), x0_fake.float(), x_student.float()
        reference = z_t.float() if normalizer == "z_t" else x
        weight = (reference - real).abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(_SMALLEST_NORMALIZER)
        gradient = torch.nan_to_num((fake - real) / weight, nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        target = x - gradient
    return DMDLoss(0.5 * F.mse_loss(x_student.float(), target), gradient)


@torch.no_grad()
def score_error_cosine(x_student: Tensor, x0_real: Tensor, x0_fake: Tensor) -> Tensor:
    """Return the mean cosine of (x0_real - x_student) and (x0_fake - x_student), a scalar to log.

    Near 1 the fake score knows the student as well as the teacher does. The fake-score loss shows this less well,
    since it mostly measures the noise level. All arguments: [B, C, H, W].
    """
    real_error, fake_error = ((x0.float() - x_student.float()).flatten(1) for x0 in (x0_real, x0_fake))
    return F.cosine_similarity(real_error, fake_error).mean()


def perceptual_distance(features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Return the distance of each image to its partner in the patch features of several layers, [B].

    distance = mean over layers and patches of 1 - cos(f, g) = 0.5 |f / |f| - g / |g||^2

    The second form is exactly 0 for equal features.

    Args:
        features, others: T patch features of each layer for the images and for their partners, each [B, T, D]. Both
            get gradient.
    """
    layers = [
        0.5 * (F.normalize(f.float(), dim=-1) - F.normalize(g.float(), dim=-1)).square().sum(-1).mean(-1)
        for f, g in zip(features, others, strict=True)
    ]
    return torch.stack(layers).mean(0)


def generator_loss(logits: Tensor) -> Tensor:
    """Return the non-saturating logistic loss of the student (DMD2, section 4.3, equation 4).

    loss = mean softplus(-D(z_t))

    Args:
        logits: the discriminator's logits of noised student samples, [B, T].
    """
    return F.softplus(-logits.float()).mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the logistic loss of the discriminator (DMD2, section 4.3); log 4 if it separates nothing.

    loss = mean softplus(-D(real)) + mean softplus(D(fake))

    Args:
        real, fake: logits of noised teacher samples and of noised student samples, [B, T].
    """
    return F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean()


def with_precomputed_gradient(x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Return loss(x), a scalar, with its gradient to `x` computed at once and stored as a constant.

    The networks inside `loss` (a decoder, the fake score) get no gradient. Their graph is freed before the student's
    own backward pass. The value and the gradient to `x` are those of a plain call of `loss`.
    """
    leaf = x.detach().requires_grad_(True)
    with torch.enable_grad():
        value = loss(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach() + ((x - x.detach()) * gradient).sum()
