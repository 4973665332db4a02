"""The methods as lists of loss terms, and the two turns that they share: `student_turn` and `fake_turn`.

A turn takes one micro-batch and returns its losses; optimizers, ranks and accumulation are the trainer's. Every
random draw is named by the step and by the sample's place in the global batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dpdmd import losses, rng
from dpdmd.families.base import Family, TextEmbedding
from dpdmd.networks import Networks
from dpdmd.options import MethodConfig
from dpdmd.rollout import Rollout, anchor_target, rollout
from dpdmd.schedules import Schedule


@dataclass(frozen=True)
class MicroBatch:
    """Prompts of one forward pass.

    Attributes:
        text: embeddings of B prompts.
        step: the update they belong to.
        samples: place of each in the step's global batch, [B].
        rollout_step: the update whose prompts and start noise these are; another one than `step` in a fake turn that
            shares the roll-out of the turn before it.
    """

    text: TextEmbedding
    step: int
    samples: Sequence[int]
    rollout_step: int


@dataclass(frozen=True)
class TurnResult:
    """What one turn computed on one micro-batch.

    Attributes:
        loss: scalar to run backward on.
        metrics: detached scalars to log, by name.
        pictures: latents worth looking at, by name, each [B, C, H, W].
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    pictures: dict[str, Tensor]


@dataclass(frozen=True)
class Look:
    """What both scores see in a noised sample: `z_t` at `sigma` [B], and the x0 that each predicts, [B, C, H, W]."""

    z_t: Tensor
    sigma: Tensor
    x0_real: Tensor
    x0_fake: Tensor


@dataclass(frozen=True)
class Distillation:
    """All that a turn needs and that stays the same over a run.

    Attributes:
        null: embedding of the empty prompt, one row.
        latent_shape: (C, H, W).
        student_forward, fake_forward: the networks as the trainer calls them with gradient (wrapped or not).
    """

    config: MethodConfig
    family: Family
    schedule: Schedule
    networks: Networks
    student_forward: nn.Module
    fake_forward: nn.Module
    null: TextEmbedding
    latent_shape: tuple[int, int, int]
    student_sigmas: Tensor
    teacher_sigmas: Tensor
    score_sigmas: Tensor
    seed: int
    kept_samples: dict[tuple[int, tuple[int, ...]], Tensor] = field(default_factory=dict)

    @staticmethod
    def grids(config: MethodConfig, schedule: Schedule, device: torch.device) -> dict[str, Tensor]:
        """The three sigma grids: student's, teacher's, and the 1000 at which the scores look.

        Raises:
            ValueError: `student_sigmas` cannot be parsed.
        """
        return {
            "student_sigmas": schedule.parse_sigmas(config.student_sigmas, config.stu_inference_steps).to(device),
            "teacher_sigmas": schedule.default_sigmas(config.teacher_infer_steps).to(device),
            "score_sigmas": schedule.score_sigmas().to(device),
        }

    def start_noise(self, batch: MicroBatch) -> Tensor:
        """eps from which student and teacher both start, [B, C, H, W]."""
        return self._normal("start noise", batch.rollout_step, batch)

    def score_input(self, batch: MicroBatch, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(z_t, sigma, noise) at which real and fake score look at the sample `x`."""
        samples = [0] * len(batch.samples) if self.config.dmd_t == "per_batch" else batch.samples
        times = self.score_sigmas
        draws = rng.integers_per_sample(len(times), self.seed, "score time", batch.step, samples, device=times.device)
        sigma = times[draws]
        noise = self._normal("score noise", batch.step, batch)
        return self.schedule.add_noise(x, noise, sigma), sigma, noise

    @torch.no_grad()
    def look(self, batch: MicroBatch, x: Tensor) -> Look:
        """Noise the sample `x` and let real and fake score say what it was."""
        z_t, sigma, _ = self.score_input(batch, x)
        x0_real = self.schedule.to_x0(z_t, self.teacher(batch.text)(z_t, sigma), sigma)
        fake = self.family.bind(self.networks.fake, batch.text)
        x0_fake = self.schedule.to_x0(z_t, fake(z_t, sigma), sigma)
        return Look(z_t, sigma, x0_real, x0_fake)

    def teacher(self, text: TextEmbedding):
        """The guided teacher with its prompts bound."""
        return self.family.bind_guided(self.networks.teacher, text, self.null, self.config.teacher_guidance_scale)

    @torch.no_grad()
    def student_samples(self, batch: MicroBatch) -> Tensor:
        """What the student makes of the batch, [B, C, H, W]; kept for the fake turns that share this roll-out.

        The student does not change between them, so one that is resumed between two of them makes the same again.
        """
        key = (batch.rollout_step, tuple(batch.samples))
        if key in self.kept_samples:
            return self.kept_samples[key]
        student = self.family.bind(self.networks.student, batch.text)
        x = rollout(student, self.schedule, self.start_noise(batch), self.student_sigmas).x
        if self.config.fake_rollout_reuse > 1:
            for old in [kept for kept in self.kept_samples if kept[0] != batch.rollout_step]:
                del self.kept_samples[old]
            self.kept_samples[key] = x
        return x

    def _normal(self, purpose: str, step: int, batch: MicroBatch) -> Tensor:
        device = self.student_sigmas.device
        return rng.normal_per_sample(self.latent_shape, self.seed, purpose, step, batch.samples, device=device)


@dataclass(frozen=True)
class StudentTurn:
    """One micro-batch's roll-out, on which the loss terms work."""

    batch: MicroBatch
    eps: Tensor
    rollout: Rollout


Term = Callable[[Distillation, StudentTurn], TurnResult]


def dmd_term(run: Distillation, turn: StudentTurn) -> TurnResult:
    """DMD loss on x_theta: guided teacher against fake score, both without gradient (paper, section 3)."""
    x, seen = turn.rollout.x, run.look(turn.batch, turn.rollout.x.detach())
    dmd = losses.dmd_loss(x, seen.x0_real, seen.x0_fake, seen.z_t, run.config.dmd_normalizer)
    metrics = {
        "loss_dmd": dmd.loss.detach(),
        "dmd_gradient_norm": dmd.gradient.flatten(1).norm(dim=1).mean(),
        "score_error_cosine": losses.score_error_cosine(x.detach(), seen.x0_real, seen.x0_fake),
    }
    return TurnResult(dmd.loss, metrics, {"student": x.detach(), "x0_real": seen.x0_real, "x0_fake": seen.x0_fake})


def diversity_term(run: Distillation, turn: StudentTurn) -> TurnResult:
    """lambda times the mean squared error of the student's first step to the teacher's anchor.

    In velocity (paper, section 4.1) or in x0 (appendix C): the schedule says which.
    """
    teacher, config = run.teacher(turn.batch.text), run.config
    first = run.schedule.anchored(turn.eps, turn.rollout.first_prediction, run.student_sigmas[0])
    target = anchor_target(teacher, run.schedule, turn.eps, run.teacher_sigmas, config.k_anchor, config.anchor_steps)
    loss = losses.diversity_loss(first, target)
    return TurnResult(run.config.div_weight * loss, {"loss_div": loss.detach()}, {})


@dataclass(frozen=True)
class Method:
    """A row of the paper's comparison: which terms, and whether the latent is detached after step 1."""

    terms: tuple[Term, ...]
    detach_first_step: bool


METHODS = {
    "dpdmd": Method((dmd_term, diversity_term), detach_first_step=True),
    "dmd": Method((dmd_term,), detach_first_step=False),
}


def roll_out(run: Distillation, batch: MicroBatch) -> StudentTurn:
    """The student's roll-out with gradient, detached where its method says so."""
    eps, detach = run.start_noise(batch), METHODS[run.config.method].detach_first_step
    student = run.family.bind(run.student_forward, batch.text)
    return StudentTurn(batch, eps, rollout(student, run.schedule, eps, run.student_sigmas, detach_first_step=detach))


def student_turn(run: Distillation, batch: MicroBatch) -> TurnResult:
    """Roll the student out with gradient and sum the method's terms."""
    turn = roll_out(run, batch)
    results = [term(run, turn) for term in METHODS[run.config.method].terms]
    loss = torch.stack([result.loss for result in results]).sum()
    metrics = {name: value for result in results for name, value in result.metrics.items()}
    pictures = {name: value for result in results for name, value in result.pictures.items()}
    return TurnResult(loss, {"loss_student": loss.detach(), **metrics}, pictures)


def fake_turn(run: Distillation, batch: MicroBatch) -> TurnResult:
    """Denoising of the fake score on student samples; no gradient reaches the student (paper, section 3)."""
    with torch.no_grad():
        x = run.student_samples(batch)
        z_t, sigma, noise = run.score_input(batch, x)
    prediction = run.family.bind(run.fake_forward, batch.text)(z_t, sigma)
    loss = losses.fake_score_loss(prediction, run.schedule.target(x, noise))
    return TurnResult(loss, {"loss_fake": loss.detach()}, {"student": x})
