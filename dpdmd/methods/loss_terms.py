"""The loss terms: each takes the run and one micro-batch's roll-out, and returns its weighted loss and its figures."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dpdmd.methods import losses
from dpdmd.methods.anchor import anchor_target
from dpdmd.methods.context import DistillationContext, LossResult, MicroBatch
from dpdmd.sampling.rollout import Rollout


@dataclass(frozen=True)
class StudentRollout:
    """One micro-batch's roll-out with gradient, on which the student's terms work."""

    batch: MicroBatch
    eps: Tensor
    rollout: Rollout


@dataclass(frozen=True)
class FakeScoreBatch:
    """One micro-batch's student samples `x` [B, C, H, W] without gradient, on which the fake turn's terms work."""

    batch: MicroBatch
    x: Tensor


Term = Callable[[DistillationContext, StudentRollout], LossResult]
FakeTerm = Callable[[DistillationContext, FakeScoreBatch], LossResult]


def dmd_term(run: DistillationContext, turn: StudentRollout) -> LossResult:
    """DMD loss on x_theta: guided teacher against fake score, both without gradient (paper, section 3)."""
    x, seen = turn.rollout.x, run.predict_scores(turn.batch, turn.rollout.x.detach())
    dmd = losses.dmd_loss(x, seen.x0_real, seen.x0_fake, seen.z_t, run.config.dmd_normalizer)
    metrics = {
        "loss_dmd": dmd.loss.detach(),
        "dmd_gradient_norm": dmd.gradient.flatten(1).norm(dim=1).mean(),
        "score_error_cosine": losses.score_error_cosine(x.detach(), seen.x0_real, seen.x0_fake),
    }
    return LossResult(dmd.loss, metrics, {"student": x.detach(), "x0_real": seen.x0_real, "x0_fake": seen.x0_fake})


def diversity_term(run: DistillationContext, turn: StudentRollout) -> LossResult:
    """lambda times the mean squared error of the student's first step to the teacher's anchor.

    In velocity (paper, section 4.1) or in x0 (appendix C): the schedule says which.
    """
    teacher, config = run.teacher(turn.batch.text), run.config
    first = run.schedule.anchored(turn.eps, turn.rollout.first_prediction, run.student_sigmas[0])
    target = anchor_target(teacher, run.schedule, turn.eps, run.teacher_sigmas, config.k_anchor, config.anchor_steps)
    loss = losses.diversity_loss(first, target)
    return LossResult(run.config.div_weight * loss, {"loss_div": loss.detach()}, {})


def perceptual_term(run: DistillationContext, turn: StudentRollout) -> LossResult:
    """Weighted perceptual distance of the student's images to the teacher's from the same noises and prompts.

    What the paper compares with as DMD-LPIPS (section 5.1), and DMD's regression loss, its pairs made on the fly. The
    gradient reaches the student through perceptual network and decoder, one image after the other, since those
    graphs are the larger part of the memory.
    """
    x, teacher, decode = turn.rollout.x, run.teacher_samples(turn.batch), run.decoder.decode_with_gradient

    def distance(of: Tensor, to: Tensor) -> Tensor:
        with torch.no_grad():
            target = decode(to)
        return losses.backprop_through_constant(of, lambda latent: run.perceptual(decode(latent), target).mean())

    loss = torch.stack([distance(x[i : i + 1], teacher[i : i + 1]) for i in range(len(x))]).mean()
    images = {"teacher": teacher}
    return LossResult(run.config.perceptual_weight * loss, {"loss_perceptual": loss.detach()}, images)


def adversarial_term(run: DistillationContext, turn: StudentRollout) -> LossResult:
    """Weighted generator loss on noised student samples (DMD2, section 4.3); the discriminator gets no gradient."""
    discriminator, text = run.discriminator, turn.batch.text

    def loss_of(x: Tensor) -> Tensor:
        z_t, sigma = run.discriminator_input(turn.batch, x, "student")
        return losses.generator_loss(discriminator.heads(discriminator.features(run.family, z_t, sigma, text)))

    loss = losses.backprop_through_constant(turn.rollout.x, loss_of)
    return LossResult(run.config.gan_weight * loss, {"loss_gan": loss.detach()}, {})


def fake_score_term(run: DistillationContext, turn: FakeScoreBatch) -> LossResult:
    """Denoising of the fake score on student samples; no gradient reaches the student (paper, section 3)."""
    with torch.no_grad():
        z_t, sigma, noise = run.score_input(turn.batch, turn.x)
    prediction = run.family.bind(run.fake_forward, turn.batch.text)(z_t, sigma)
    loss = losses.fake_score_loss(prediction, run.schedule.target(turn.x, noise))
    return LossResult(loss, {"loss_fake": loss.detach()}, {"student": turn.x})


def discriminator_term(run: DistillationContext, turn: FakeScoreBatch) -> LossResult:
    """Logistic loss of the discriminator on noised teacher and student samples of the same prompts and noises.

    The heads alone get gradient: their features are constants.
    """
    discriminator, samples = run.discriminator, {"teacher": run.teacher_samples(turn.batch), "student": turn.x}
    features = []
    with torch.no_grad():
        for role, x in samples.items():
            z_t, sigma = run.discriminator_input(turn.batch, x, role)
            features.append(discriminator.features(run.family, z_t, sigma, turn.batch.text))
    real, fake = discriminator.heads_forward([torch.cat(pair) for pair in zip(*features, strict=True)]).chunk(2)
    loss = losses.discriminator_loss(real, fake)
    metrics = {"logit_real": real.detach().mean(), "logit_fake": fake.detach().mean()}
    return LossResult(loss, {"loss_discriminator": loss.detach(), **metrics}, {"teacher": samples["teacher"]})
