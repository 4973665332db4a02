"""The loss terms that methods sum: one function each, by name in `STUDENT_TERMS` and `FAKE_TERMS`.

A term takes the context of the run and one micro-batch's samples. It returns its weighted loss and its metrics. Which
terms a method sums is in its row of `dpdmd/config/method_table.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpdmd.methods import health, losses, update_schedule
from dpdmd.methods.anchor import anchor_target
from dpdmd.methods.context import DistillationContext, LossResult, MicroBatch


@dataclass(frozen=True)
class StudentRollout:
    """One micro-batch's roll-out with gradient: the input of the student's terms.

    Attributes:
        eps: start noise, [B, C, H, W].
        x: the student's samples, [B, C, H, W].
        first_prediction: the student's prediction at the first sigma, [B, C, H, W].
    """

    batch: MicroBatch
    eps: Tensor
    x: Tensor
    first_prediction: Tensor


@dataclass(frozen=True)
class FakeScoreBatch:
    """One micro-batch's student samples `x` [B, C, H, W] without gradient: the input of the fake score's terms."""

    batch: MicroBatch
    x: Tensor


StudentTerm = Callable[[DistillationContext, StudentRollout], LossResult]
FakeTerm = Callable[[DistillationContext, FakeScoreBatch], LossResult]


def dmd_term(context: DistillationContext, student: StudentRollout) -> LossResult:
    """Return the DMD loss of the student's samples (paper, section 3).

    The guided teacher and the fake score predict x0 without gradient.
    """
    x, scores = student.x, context.predict_scores(student.batch, student.x.detach())
    dmd = losses.dmd_loss(x, scores.x0_real, scores.x0_fake, scores.z_t, context.config.dmd_normalizer)
    metrics = {
        "loss_dmd": dmd.loss.detach(),
        "dmd_gradient_norm": dmd.gradient.flatten(1).norm(dim=1).mean(),
        "score_error_cosine": losses.score_error_cosine(x.detach(), scores.x0_real, scores.x0_fake),
        **health.sample_metrics(x.detach(), scores.x0_real),
    }
    return LossResult(dmd.loss, metrics, {"student": x.detach(), "x0_real": scores.x0_real, "x0_fake": scores.x0_fake})


def diversity_term(context: DistillationContext, student: StudentRollout) -> LossResult:
    """Return lambda, by its schedule, times the loss of the student's first step against the teacher's anchor.

    The schedule compares velocities (paper, section 4.1) or x0 (appendix C).
    """
    config, schedule, eps = context.config, context.schedule, student.eps
    first = schedule.anchored(eps, student.first_prediction, context.student_sigmas[0])
    teacher = context.teacher(student.batch.text)
    target = anchor_target(teacher, schedule, eps, context.teacher_sigmas, config.k_anchor, config.anchor_steps)
    loss = losses.diversity_loss(first, target)
    weight = update_schedule.diversity_weight(student.batch.step, context.total_steps, config)
    weight *= context.div_weight_factor
    metrics = {"loss_div": loss.detach(), **health.anchor_metrics(first.detach(), target, weight)}
    if config.div_weight_schedule != "constant":
        metrics["div_weight"] = torch.full_like(metrics["loss_div"], weight)
    return LossResult(weight * loss, metrics, {})


def perceptual_term(context: DistillationContext, student: StudentRollout) -> LossResult:
    """Return the weighted perceptual distance of the student's images to teacher images of the same noise and prompts.

    This is the paper's DMD-LPIPS (section 5.1): DMD's regression loss, with pairs that are generated on the fly. The
    gradient runs through the perceptual network and the decoder. Images are compared one by one, since these two
    graphs take most of the memory.
    """
    teacher, decode = context.teacher_samples(student.batch), context.decoder.decode_with_gradient

    def distance(x: Tensor, partner: Tensor) -> Tensor:
        with torch.no_grad():
            target = decode(partner)
        return losses.with_precomputed_gradient(x, lambda latent: context.perceptual(decode(latent), target).mean())

    distances = [distance(student.x[i : i + 1], teacher[i : i + 1]) for i in range(len(student.x))]
    loss = torch.stack(distances).mean()
    weighted = context.config.perceptual_weight * loss
    return LossResult(weighted, {"loss_perceptual": loss.detach()}, {"teacher": teacher})


def adversarial_term(context: DistillationContext, student: StudentRollout) -> LossResult:
    """Return the weighted generator loss of noised student samples (DMD2, section 4.3).

    The discriminator gets no gradient.
    """
    discriminator, text = context.discriminator, student.batch.text

    def loss_of(x: Tensor) -> Tensor:
        z_t, sigma = context.discriminator_input(student.batch, x, "student")
        return losses.generator_loss(discriminator.heads(discriminator.features(context.family, z_t, sigma, text)))

    loss = losses.with_precomputed_gradient(student.x, loss_of)
    return LossResult(context.config.gan_weight * loss, {"loss_gan": loss.detach()}, {})


def fake_score_term(context: DistillationContext, student: FakeScoreBatch) -> LossResult:
    """Return the denoising loss of the fake score on student samples (paper, section 3)."""
    with torch.no_grad():
        z_t, sigma, noise = context.score_input(student.batch, student.x)
    with context.dropout(context.networks.fake, student.batch):
        prediction = context.family.bind(context.fake_forward, student.batch.text)(z_t, sigma)
    loss = losses.fake_score_loss(prediction, context.schedule.target(student.x, noise, sigma))
    return LossResult(loss, {"loss_fake": loss.detach()}, {"student": student.x})


def discriminator_term(context: DistillationContext, student: FakeScoreBatch) -> LossResult:
    """Return the logistic loss of the discriminator on noised teacher and student samples of the same prompts.

    Teacher and student start from the same noise. Only the discriminator's heads get gradient.
    """
    discriminator, batch = context.discriminator, student.batch
    samples = {"teacher": context.teacher_samples(batch), "student": student.x}
    features = []
    with torch.no_grad():
        for role, x in samples.items():
            z_t, sigma = context.discriminator_input(batch, x, role)
            features.append(discriminator.features(context.family, z_t, sigma, batch.text))
    real, fake = discriminator.heads_forward([torch.cat(pair) for pair in zip(*features, strict=True)]).chunk(2)
    loss = losses.discriminator_loss(real, fake)
    metrics = {"logit_real": real.detach().mean(), "logit_fake": fake.detach().mean()}
    return LossResult(loss, {"loss_discriminator": loss.detach(), **metrics}, {"teacher": samples["teacher"]})


STUDENT_TERMS: dict[str, StudentTerm] = {
    "dmd": dmd_term,
    "diversity": diversity_term,
    "perceptual": perceptual_term,
    "adversarial": adversarial_term,
}
FAKE_TERMS: dict[str, FakeTerm] = {"fake_score": fake_score_term, "discriminator": discriminator_term}
