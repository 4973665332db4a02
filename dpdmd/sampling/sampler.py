"""Sample images of prompts and seeds with a loaded network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dpdmd.models.base import Family, ImageDecoder, TextEmbedding, TextEncoder
from dpdmd.models.noise_schedule import Predictor, Schedule
from dpdmd.sampling.rollout import rollout
from dpdmd.utils.rng import normal_per_sample

Batch = list[tuple[int, int]]  # keys (prompt index, sample index) of images that are sampled together


def batches_of(num_prompts: int, num_samples: int, batch_size: int) -> list[Batch]:
    """Divide the keys of `num_samples` images of each prompt into batches."""
    keys = [(prompt, sample) for prompt in range(num_prompts) for sample in range(num_samples)]
    return [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]


def check_finite(images: Tensor, model: Path | str) -> None:
    """Check that all values are finite. Other values would be black in an 8-bit image.

    Raises:
        ValueError: an infinite or NaN value; the message names `model`.
    """
    if not images.isfinite().all():
        raise ValueError(
            f"--model {model}: its images are not finite; check that its weights are complete and belong to this model"
        )


@dataclass(frozen=True)
class SamplerSettings:
    """The sigma grid [N + 1], the guidance scale, and the image size in pixels."""

    sigmas: Tensor
    guidance_scale: float
    height: int
    width: int

    def as_dict(self) -> dict[str, object]:
        """Return plain values, to be written beside images."""
        return {
            "sigmas": [round(value, 6) for value in self.sigmas.tolist()],
            "guidance_scale": self.guidance_scale,
            "size": [self.height, self.width],
        }


@dataclass
class Sampler:
    """A network and the other parts that sampling needs. Used in training, evaluation and programs."""

    family: Family
    network: nn.Module
    schedule: Schedule
    decoder: ImageDecoder
    null: TextEmbedding
    settings: SamplerSettings

    @torch.no_grad()
    def latents(self, text: TextEmbedding, eps: Tensor) -> Tensor:
        """Sample latents from the start noise `eps` [B, C, h, w]."""
        return rollout(self.predictor(text), self.schedule, eps, self.settings.sigmas.to(eps.device)).x

    def predictor(self, text: TextEmbedding) -> Predictor:
        """Return the guided network with its prompts bound."""
        return self.family.bind_guided(self.network, text, self.null, self.settings.guidance_scale)

    def images(self, text: TextEmbedding, keys: Batch, seed: int) -> Tensor:
        """Sample images [B, 3, H, W] in [0, 1] of B encoded prompts.

        The noise of image i depends only on `seed` and keys[i] = (prompt index, sample index), not on the batch.
        """
        return self.decoder.decode(self.latents(text, self.start_noise(keys, seed)))

    def start_noise(self, keys: Batch, seed: int) -> Tensor:
        """Return the start noise [B, C, h, w] of `images`, on the family's device."""
        shape = self.decoder.latent_shape(self.settings.height, self.settings.width)
        eps = torch.cat([normal_per_sample(shape, seed, "picture", prompt, [sample]) for prompt, sample in keys])
        return eps.to(self.family.device)

    def sweep(
        self, encoder: TextEncoder, prompts: Sequence[str], batches: Sequence[Batch], seed: int, *, progress: str = ""
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Yield (keys, images) of each batch. A prompt is encoded once for consecutive batches."""
        texts: dict[int, TextEmbedding] = {}
        for batch in tqdm(batches, desc=progress, disable=not progress):
            texts = {
                p: texts[p] if p in texts else encoder.encode([prompts[p]]) for p in dict.fromkeys(p for p, _ in batch)
            }
            yield batch, self.images(TextEmbedding.concatenate([texts[p] for p, _ in batch]), batch, seed)
