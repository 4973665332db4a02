"""The two updates that all methods share: a student update and a fake-score update."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpdmd.config.options import MethodConfig
from dpdmd.methods.context import DistillationContext, LossResult, MicroBatch
from dpdmd.methods.loss_terms import FakeScoreBatch, StudentRollout, diversity_term
from dpdmd.methods.registry import METHODS
from dpdmd.sampling.rollout import rollout
from dpdmd.utils import rng


@dataclass(frozen=True)
class RolloutOptions:
    """How the student is rolled out: the arguments of `rollout`."""

    detach_first_step: bool
    gradient_steps: frozenset[int]
    jump_at: int | None


def detaches_first_step(config: MethodConfig) -> bool:
    """Whether the latent is detached after step 1: what the flag says, else the method."""
    if config.detach_first_step is None:
        return METHODS[config.method].detach_first_step
    return config.detach_first_step


def rollout_options(config: MethodConfig, seed: int, step: int) -> RolloutOptions:
    """The roll-out of update `step`: which steps keep gradient, and where it ends.

    A loss on the sample may reach all steps, or those after the first where the latent is detached there. Of them
    `--grad_steps` keeps all, the last, or one drawn for the step; `--rollout dmd2` ends at one drawn for the step. The
    first prediction keeps gradient as well where the diversity loss asks for it. A function of the step alone, so the
    same on every rank and in every micro-batch: ranks with other graphs would wait for each other for ever.
    """
    reached = range(int(detaches_first_step(config)), config.stu_inference_steps)
    first = {0} if diversity_term in METHODS[config.method].terms else set()
    kept, jump_at = set(reached), None
    if config.rollout == "dmd2":
        jump_at = _one_of(reached, seed, "jump step", step)
        kept = {jump_at}
    elif config.grad_steps != "all":
        kept = {reached[-1] if config.grad_steps == "last" else _one_of(reached, seed, "gradient step", step)}
    # A first prediction that is kept for the diversity loss alone is out of the sample's reach.
    return RolloutOptions(0 not in kept, frozenset(kept | first), jump_at)


def _one_of(steps: Sequence[int], seed: int, purpose: str, step: int) -> int:
    return steps[int(rng.integers_per_sample(len(steps), seed, purpose, step, [0]))]


def roll_out_student(run: DistillationContext, batch: MicroBatch) -> StudentRollout:
    """The student's roll-out with gradient, along the route of its step."""
    eps, way = run.start_noise(batch), rollout_options(run.config, run.seed, batch.rollout_step)
    student = run.family.bind(run.student_forward, batch.text)
    rolled = rollout(
        student,
        run.schedule,
        eps,
        run.student_sigmas,
        detach_first_step=way.detach_first_step,
        gradient_steps=way.gradient_steps,
        jump_at=way.jump_at,
    )
    return StudentRollout(batch, eps, rolled)


@torch.no_grad()
def student_samples(run: DistillationContext, batch: MicroBatch) -> Tensor:
    """What the student makes of the batch, [B, C, H, W]; kept for the fake turns that share this roll-out.

    The student does not change between them, so one that is resumed between two of them makes the same again.
    """
    key = (batch.rollout_step, tuple(batch.samples))
    if key in run.kept_samples:
        return run.kept_samples[key]
    student = run.family.bind(run.networks.student, batch.text)
    jump_at = rollout_options(run.config, run.seed, batch.rollout_step).jump_at
    x = rollout(student, run.schedule, run.start_noise(batch), run.student_sigmas, jump_at=jump_at).x
    if run.config.fake_rollout_reuse > 1:
        for old in [kept for kept in run.kept_samples if kept[0] != batch.rollout_step]:
            del run.kept_samples[old]
        run.kept_samples[key] = x
    return x


def _sum(results: Sequence[LossResult]) -> LossResult:
    """One loss of several; what they name alike is the same."""
    metrics = {name: value for result in results for name, value in result.metrics.items()}
    images = {name: value for result in results for name, value in result.images.items()}
    return LossResult(torch.stack([result.loss for result in results]).sum(), metrics, images)


def student_loss(run: DistillationContext, batch: MicroBatch) -> LossResult:
    """Roll the student out with gradient and sum the method's terms."""
    turn = roll_out_student(run, batch)
    result = _sum([term(run, turn) for term in METHODS[run.config.method].terms])
    return LossResult(result.loss, {"loss_student": result.loss.detach(), **result.metrics}, result.images)


def fake_score_loss(run: DistillationContext, batch: MicroBatch) -> LossResult:
    """Show student samples to the fake score, and to what learns with it.

    Each term's gradient is its own network's alone, so that their sum trains each as if it were by itself.
    """
    turn = FakeScoreBatch(batch, student_samples(run, batch))
    return _sum([term(run, turn) for term in METHODS[run.config.method].fake_terms])
