"""The losses of the two updates that all methods share: a student update and a fake-score update.

Each function computes the losses of one micro-batch. Optimizers, ranks and gradient accumulation belong to the trainer.
Every random draw is named by the step and by the sample's place in the global batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpdmd.config.method_table import METHODS, detaches_first_step
from dpdmd.config.options import MethodConfig
from dpdmd.methods.context import DistillationContext, LossResult, MicroBatch
from dpdmd.methods.loss_terms import FAKE_TERMS, STUDENT_TERMS, FakeScoreBatch, StudentRollout
from dpdmd.sampling.rollout import rollout
from dpdmd.utils import rng


@dataclass(frozen=True)
class RolloutOptions:
    """The arguments of `rollout` that set where the student's roll-out ends, and which steps keep gradient."""

    detach_first_step: bool
    gradient_steps: frozenset[int]
    jump_at: int | None


def rollout_options(config: MethodConfig, seed: int, step: int) -> RolloutOptions:
    """Return the options of the student's roll-out in update `step`.

    A loss on the sample can reach every step, or every step after the first if the latent is detached there. Of these
    steps, `--grad_steps` keeps gradient in all, in the last, or in one that is drawn for each update. `--rollout dmd2`
    ends the roll-out at a step that is drawn for each update. The diversity loss adds the first prediction.

    The options depend on the step alone, so they are the same on every rank and in every micro-batch. Ranks with
    different graphs would wait for each other forever.
    """
    detaches = detaches_first_step(config.method, config.detach_first_step)
    reached = range(int(detaches), config.stu_inference_steps)
    first = {0} if "diversity" in METHODS[config.method].student_terms else set()
    sample_steps, jump_at = set(reached), None
    if config.rollout == "dmd2":
        jump_at = _draw_one(reached, seed, "jump step", step)
        sample_steps = {jump_at}
    elif config.grad_steps == "last":
        sample_steps = {reached[-1]}
    elif config.grad_steps == "random":
        sample_steps = {_draw_one(reached, seed, "gradient step", step)}
    # If only the diversity loss needs the first prediction, no loss on the sample may reach it.
    return RolloutOptions(0 not in sample_steps, frozenset(sample_steps | first), jump_at)


def _draw_one(steps: Sequence[int], seed: int, purpose: str, step: int) -> int:
    return steps[int(rng.integers_per_sample(len(steps), seed, purpose, step, [0]))]


def roll_out_student(context: DistillationContext, batch: MicroBatch) -> StudentRollout:
    """Roll the student out with gradient from the batch's start noise."""
    eps, options = context.start_noise(batch), rollout_options(context.config, context.seed, batch.rollout_step)
    with context.dropout(context.networks.student, batch):
        result = rollout(
            context.family.bind(context.student_forward, batch.text),
            context.schedule,
            eps,
            context.student_sigmas,
            detach_first_step=options.detach_first_step,
            gradient_steps=options.gradient_steps,
            jump_at=options.jump_at,
        )
    return StudentRollout(batch, eps, result.x, result.first_prediction)


@torch.no_grad()
def student_samples(context: DistillationContext, batch: MicroBatch) -> Tensor:
    """Return the student's samples of the batch, [B, C, H, W], which several fake-score updates may share."""

    def roll_out() -> Tensor:
        student = context.family.bind(context.networks.student, batch.text)
        jump_at = rollout_options(context.config, context.seed, batch.rollout_step).jump_at
        return rollout(student, context.schedule, context.start_noise(batch), context.student_sigmas, jump_at=jump_at).x

    return context.share("student", batch, roll_out)


def _sum(results: Sequence[LossResult]) -> LossResult:
    """Sum the losses and merge metrics and latents; equal names hold equal values."""
    metrics = {name: value for result in results for name, value in result.metrics.items()}
    latents = {name: value for result in results for name, value in result.latents.items()}
    return LossResult(torch.stack([result.loss for result in results]).sum(), metrics, latents)


def student_loss(context: DistillationContext, batch: MicroBatch) -> LossResult:
    """Roll the student out with gradient and sum the method's student terms."""
    context = context.at_size(batch.size_index)
    rolled_out = roll_out_student(context, batch)
    terms = [STUDENT_TERMS[name] for name in METHODS[context.config.method].student_terms]
    result = _sum([term(context, rolled_out) for term in terms])
    return LossResult(result.loss, {"loss_student": result.loss.detach(), **result.metrics}, result.latents)


def fake_score_loss(context: DistillationContext, batch: MicroBatch) -> LossResult:
    """Sample from the student without gradient and sum the method's fake-score terms.

    Each term gives gradient to one network only, so the sum trains each network as its own term would.
    """
    context = context.at_size(batch.size_index)
    samples = FakeScoreBatch(batch, student_samples(context, batch))
    terms = [FAKE_TERMS[name] for name in METHODS[context.config.method].fake_terms]
    return _sum([term(context, samples) for term in terms])
