"""The inputs and the result of an update's loss: micro-batch, networks, grids and named random draws."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from dpdmd.config.image_sizes import ImageSize
from dpdmd.config.options import MethodConfig
from dpdmd.methods.discriminator import DiscriminatorContext
from dpdmd.methods.networks import Networks
from dpdmd.models.base import Family, ImageDecoder, TextEmbedding
from dpdmd.models.lora import AdapterView
from dpdmd.models.noise_schedule import Predictor, Schedule
from dpdmd.sampling.rollout import rollout
from dpdmd.utils import rng


@dataclass(frozen=True)
class MicroBatch:
    """The prompts of one forward pass.

    Attributes:
        text: embeddings of B prompts.
        step: the update that the prompts belong to.
        samples: index of each prompt in the step's global batch, [B].
        rollout_step: the update that names the prompts and start noises. It is below `step` if a fake-score update
            shares the roll-out of an earlier one.
        pool_indices: index of each prompt in the pool of teacher samples, [B], which names the start noise; None if
            the update does not use the pool.
        size_index: place of the images' size among the run's sizes.
    """

    text: TextEmbedding
    step: int
    samples: Sequence[int]
    rollout_step: int
    pool_indices: Sequence[int] | None = None
    size_index: int = 0


@dataclass(frozen=True)
class LossResult:
    """The loss of one update on one micro-batch.

    Attributes:
        loss: scalar to run backward on.
        metrics: detached scalars to log, by name.
        latents: to show, by name, each [B, C, H, W].
    """

    loss: Tensor
    metrics: dict[str, Tensor]
    latents: dict[str, Tensor]


@dataclass(frozen=True)
class ScorePredictions:
    """The x0 predictions [B, C, H, W] of the teacher and of the fake score for `z_t` [B, C, H, W] at `sigma` [B]."""

    z_t: Tensor
    sigma: Tensor
    x0_real: Tensor
    x0_fake: Tensor


@dataclass(frozen=True)
class DistillationContext:
    """Everything that an update needs and that stays the same over a run.

    Attributes:
        student_forward, fake_forward: the networks to call with gradient, wrapped or not.
        null: embedding of the empty prompt, one row.
        latent_shapes: (C, H, W) of each of the run's image sizes.
        schedule, student_sigmas, teacher_sigmas, score_sigmas: of the run's first image size, or of another one in what
            `at_size` returns. Sampling grids are [N + 1], the noise levels of the scores [1000].
        grids_by_size: these four for each image size, by name; one entry if the schedule is the same at all sizes.
        decoder, perceptual: latents -> images [B, 3, H, W], and two batches of images -> distances [B]; for a method
            that compares images.
        discriminator: for a method that trains a discriminator.
        stored_samples: for each image size, pool indices -> teacher samples that were generated before the run; None to
            generate teacher samples when an update needs them.
        total_steps: the update after which the run ends; for a weight that changes over the run.
        div_weight_factor: factor of lambda, which `--div_weight_schedule adaptive` changes after each evaluation.
        shared_samples: what several fake-score updates share, by role, roll-out step and samples (`share`).
    """

    config: MethodConfig
    family: Family
    schedule: Schedule
    networks: Networks
    student_forward: nn.Module
    fake_forward: nn.Module
    null: TextEmbedding
    latent_shapes: Sequence[tuple[int, int, int]]
    student_sigmas: Tensor
    teacher_sigmas: Tensor
    score_sigmas: Tensor
    seed: int
    grids_by_size: Sequence[dict[str, Schedule | Tensor]] = ()
    decoder: ImageDecoder | None = None
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None
    discriminator: DiscriminatorContext | None = None
    stored_samples: Sequence[Callable[[Sequence[int]], Tensor]] | None = None
    total_steps: int = 0
    div_weight_factor: float = 1.0
    shared_samples: dict[tuple[str, int, tuple[int, ...]], Tensor] = field(default_factory=dict)

    @staticmethod
    def grids(config: MethodConfig, schedule: Schedule, device: torch.device) -> dict[str, Tensor]:
        """Return the three sigma grids by the name of their field.

        Raises:
            ValueError: `student_sigmas` cannot be parsed.
        """
        return {
            "student_sigmas": schedule.parse_sigmas(config.student_sigmas, config.stu_inference_steps).to(device),
            "teacher_sigmas": schedule.default_sigmas(config.teacher_infer_steps).to(device),
            "score_sigmas": schedule.score_sigmas(config.teacher_infer_steps).to(device),
        }

    @staticmethod
    def sized_grids(
        config: MethodConfig, schedule: Schedule, sizes: Iterable[ImageSize], device: torch.device
    ) -> list[dict[str, Schedule | Tensor]]:
        """Return `grids_by_size` of images of these sizes."""
        at_sizes = [schedule.at_size(*size) for size in sizes] if schedule.depends_on_size else [schedule]
        return [{"schedule": each, **DistillationContext.grids(config, each, device)} for each in at_sizes]

    def at_size(self, size_index: int) -> "DistillationContext":
        """Return the context with the schedule and the grids of one of the run's image sizes."""
        return replace(self, **self.grids_by_size[size_index]) if len(self.grids_by_size) > 1 else self

    def dropout(self, network: nn.Module, batch: MicroBatch) -> AbstractContextManager[None]:
        """Run the calls that train `network` on this batch with its LoRA dropout, if it has any."""
        if isinstance(network, AdapterView):
            return network.dropping_out(self.seed, batch.step, batch.samples)
        return nullcontext()

    def start_noise(self, batch: MicroBatch) -> Tensor:
        """Return eps, from which student and teacher both start, [B, C, H, W]."""
        if batch.pool_indices is not None:
            return self.pool_noise(batch.pool_indices, batch.size_index)
        return self._normal("start noise", batch.rollout_step, batch.samples, self.latent_shapes[batch.size_index])

    def pool_noise(self, pool_indices: Sequence[int], size_index: int = 0) -> Tensor:
        """Return eps of samples of the pool at one of the image sizes, [B, C, H, W]: the same in every step."""
        return self._normal("pool noise", 0, pool_indices, self.latent_shapes[size_index])

    def score_input(self, batch: MicroBatch, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise the samples `x` for the teacher and the fake score; return (z_t, sigma, noise)."""
        samples = [0] * len(batch.samples) if self.config.dmd_t == "per_batch" else batch.samples
        return self._add_noise(batch, x, "score", "score noise", samples)

    def discriminator_input(self, batch: MicroBatch, x: Tensor, role: str) -> tuple[Tensor, Tensor]:
        """Noise the samples `x` of the `role` "student" or "teacher" for the discriminator; return (z_t, sigma).

        Each sample draws one sigma for both roles, and a noise for each role.
        """
        # Draws keep the name that they began with, "critic": another one would change the noise of a resumed run.
        return self._add_noise(batch, x, "critic", f"critic noise of the {role}", batch.samples)[:2]

    def _add_noise(
        self, batch: MicroBatch, x: Tensor, purpose: str, noise_purpose: str, samples: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        sigmas = self.score_sigmas
        indices = rng.integers_per_sample(
            len(sigmas), self.seed, f"{purpose} time", batch.step, samples, device=sigmas.device
        )
        sigma, noise = sigmas[indices], self._normal(noise_purpose, batch.step, batch.samples, x.shape[1:])
        return self.schedule.add_noise(x, noise, sigma), sigma, noise

    @torch.no_grad()
    def predict_scores(self, batch: MicroBatch, x: Tensor) -> ScorePredictions:
        """Add noise to the samples `x` and return the x0 predictions of the guided teacher and of the fake score."""
        z_t, sigma, _ = self.score_input(batch, x)
        real = self.teacher(batch.text, self.config.real_guidance_scale)
        x0_real = self.schedule.to_x0(z_t, real(z_t, sigma), sigma)
        fake = self.family.bind(self.networks.fake, batch.text)
        x0_fake = self.schedule.to_x0(z_t, fake(z_t, sigma), sigma)
        return ScorePredictions(z_t, sigma, x0_real, x0_fake)

    def teacher(self, text: TextEmbedding, scale: float | None = None) -> Predictor:
        """Return the guided teacher with its prompts bound; `scale` replaces `--teacher_guidance_scale`."""
        scale = self.config.teacher_guidance_scale if scale is None else scale
        return self.family.bind_guided(self.networks.teacher, text, self.null, scale)

    def teacher_samples(self, batch: MicroBatch) -> Tensor:
        """Return the teacher's samples of the batch's prompts and start noises, [B, C, H, W]."""
        if self.stored_samples is not None:
            return self.stored_samples[batch.size_index](batch.pool_indices)
        return self.share("teacher", batch, lambda: self.sample_teacher(batch.text, self.start_noise(batch)))

    def share(self, role: str, batch: MicroBatch, sample: Callable[[], Tensor]) -> Tensor:
        """Return the samples [B, C, H, W] of the `role` "student" or "teacher", which `sample` makes.

        With `--fake_rollout_reuse` several fake-score updates share prompts and start noises. Neither network changes
        between these updates, so their samples are kept, and a run that resumes between two of them makes the same.
        """
        if self.config.fake_rollout_reuse == 1:
            return sample()
        key = (role, batch.rollout_step, tuple(batch.samples))
        if key not in self.shared_samples:
            for old in [each for each in self.shared_samples if each[1] != batch.rollout_step]:
                del self.shared_samples[old]
            self.shared_samples[key] = sample()
        return self.shared_samples[key]

    @torch.no_grad()
    def sample_teacher(self, text: TextEmbedding, eps: Tensor) -> Tensor:
        """Sample the guided teacher along its whole grid from `eps` [B, C, H, W], one sample at a time.

        In a batch the last bits of a sample depend on the batch size. One at a time, a stored sample equals a sample
        that is generated anew.
        """
        rows = [
            rollout(self.teacher(text.rows(i, i + 1)), self.schedule, eps[i : i + 1], self.teacher_sigmas).x
            for i in range(len(eps))
        ]
        return torch.cat(rows)

    def _normal(self, purpose: str, step: int, samples: Sequence[int], shape: Sequence[int]) -> Tensor:
        return rng.normal_per_sample(shape, self.seed, purpose, step, samples, device=self.student_sigmas.device)
