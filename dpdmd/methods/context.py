"""What a turn works with: its micro-batch, the run's networks, grids and named draws, and what it answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dpdmd.config.options import MethodConfig
from dpdmd.methods.discriminator import DiscriminatorContext
from dpdmd.methods.networks import Networks
from dpdmd.models.base import Family, ImageDecoder, TextEmbedding
from dpdmd.models.noise_schedule import Schedule
from dpdmd.sampling.rollout import rollout
from dpdmd.utils import rng


@dataclass(frozen=True)
class MicroBatch:
    """Prompts of one forward pass.

    Attributes:
        text: embeddings of B prompts.
        step: the update they belong to.
        samples: place of each in the step's global batch, [B].
        rollout_step: the update whose prompts and start noise these are; another one than `step` in a fake turn that
            shares the roll-out of the turn before it.
        entries: in a turn that works on the pool of teacher samples, which of the pool each is, [B]; it names the start
            noise then.
    """

    text: TextEmbedding
    step: int
    samples: Sequence[int]
    rollout_step: int
    entries: Sequence[int] | None = None


@dataclass(frozen=True)
class LossResult:
    """What one turn computed on one micro-batch.

    Attributes:
        loss: scalar to run backward on.
        metrics: detached scalars to log, by name.
        images: latents worth looking at, by name, each [B, C, H, W].
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    images: dict[str, Tensor]


@dataclass(frozen=True)
class ScorePredictions:
    """What both scores see in a noised sample: `z_t` at `sigma` [B], and the x0 that each predicts, [B, C, H, W]."""

    z_t: Tensor
    sigma: Tensor
    x0_real: Tensor
    x0_fake: Tensor


@dataclass(frozen=True)
class DistillationContext:
    """All that a turn needs and that stays the same over a run.

    Attributes:
        null: embedding of the empty prompt, one row.
        latent_shape: (C, H, W).
        student_forward, fake_forward: the networks as the trainer calls them with gradient (wrapped or not).
        decoder, perceptual: what turns latents into images, and the distance of images [B, 3, H, W] to others, [B];
            of a method that compares images.
        discriminator: of a method with a discriminator.
        stored_samples: teacher samples of pool entries that were made ahead; without it they are made when asked for.
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
    decoder: ImageDecoder | None = None
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    discriminator: DiscriminatorContext | None = None
    stored_samples: Callable[[Sequence[int]], Tensor] | None = None
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
        if batch.entries is not None:
            return self.pool_noise(batch.entries)
        return self._normal("start noise", batch.rollout_step, batch.samples)

    def pool_noise(self, entries: Sequence[int]) -> Tensor:
        """eps of entries of the pool of teacher samples, the same in every step, [B, C, H, W]."""
        return self._normal("pool noise", 0, entries)

    def score_input(self, batch: MicroBatch, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(z_t, sigma, noise) at which real and fake score look at the sample `x`."""
        samples = [0] * len(batch.samples) if self.config.dmd_t == "per_batch" else batch.samples
        return self._noised(batch, x, "score", "score noise", samples)

    def discriminator_input(self, batch: MicroBatch, x: Tensor, role: str) -> tuple[Tensor, Tensor]:
        """(z_t, sigma) at which the discriminator looks at `x`, a sample of the `role` "student" or "teacher".

        Both have one time, drawn for each sample from the score's grid, and a noise each.
        """
        return self._noised(batch, x, "discriminator", f"discriminator noise of the {role}", batch.samples)[:2]

    def _noised(
        self, batch: MicroBatch, x: Tensor, purpose: str, noise_purpose: str, samples: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        times, name = self.score_sigmas, f"{purpose} time"
        draws = rng.integers_per_sample(len(times), self.seed, name, batch.step, samples, device=times.device)
        sigma = times[draws]
        noise = self._normal(noise_purpose, batch.step, batch.samples)
        return self.schedule.add_noise(x, noise, sigma), sigma, noise

    @torch.no_grad()
    def predict_scores(self, batch: MicroBatch, x: Tensor) -> ScorePredictions:
        """Noise the sample `x` and let real and fake score say what it was."""
        z_t, sigma, _ = self.score_input(batch, x)
        x0_real = self.schedule.to_x0(z_t, self.teacher(batch.text)(z_t, sigma), sigma)
        fake = self.family.bind(self.networks.fake, batch.text)
        x0_fake = self.schedule.to_x0(z_t, fake(z_t, sigma), sigma)
        return ScorePredictions(z_t, sigma, x0_real, x0_fake)

    def teacher(self, text: TextEmbedding):
        """The guided teacher with its prompts bound."""
        return self.family.bind_guided(self.networks.teacher, text, self.null, self.config.teacher_guidance_scale)

    def teacher_samples(self, batch: MicroBatch) -> Tensor:
        """What the guided teacher makes of the batch's prompts and start noises along its whole grid, [B, C, H, W]."""
        if self.stored_samples is not None:
            return self.stored_samples(batch.entries)
        return self.sample_teacher(batch.text, self.start_noise(batch))

    @torch.no_grad()
    def sample_teacher(self, text: TextEmbedding, eps: Tensor) -> Tensor:
        """The same of any prompts and noises.

        One by one: in a batch the last bits of a sample depend on the size of the batch, and a stored sample is to be
        the one that would be made anew.
        """
        rows = [
            rollout(self.teacher(text.rows(i, i + 1)), self.schedule, eps[i : i + 1], self.teacher_sigmas).x
            for i in range(len(eps))
        ]
        return torch.cat(rows)

    def _normal(self, purpose: str, step: int, samples: Sequence[int]) -> Tensor:
        device = self.student_sigmas.device
        return rng.normal_per_sample(self.latent_shape, self.seed, purpose, step, samples, device=device)
