"""(prompts, seeds) -> images, of a run's student, a checkpoint or any pipeline folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dpdmd.models.base import Family, ImageDecoder, TextEmbedding, TextEncoder
from dpdmd.models.noise_schedule import Schedule
from dpdmd.sampling.rollout import rollout
from dpdmd.utils.rng import normal_per_sample

Batch = list[tuple[int, int]]  # keys (prompt index, sample index) of images that are made together


def batches_of(num_prompts: int, num_samples: int, batch_size: int) -> list[Batch]:
    """`num_samples` images of each prompt in batches: the same ones however many processes share them."""
    keys = [(prompt, sample) for prompt in range(num_prompts) for sample in range(num_samples)]
    return [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]


@dataclass(frozen=True)
class SamplerSettings:
    """How a model samples: `sigmas` [N + 1], guidance, and the size in pixels."""

    sigmas: Tensor
    guidance_scale: float
    height: int
    width: int

    def as_dict(self) -> dict[str, object]:
        """Plain values, to note beside images."""
        return {
            "sigmas": [round(value, 6) for value in self.sigmas.tolist()],
            "guidance_scale": self.guidance_scale,
            "size": [self.height, self.width],
        }


@dataclass
class Sampler:
    """A network with all it takes to make images; used by training, evaluation and `dpdmd.generate` alike."""

    family: Family
    network: nn.Module
    schedule: Schedule
    decoder: ImageDecoder
    null: TextEmbedding
    settings: SamplerSettings

    @torch.no_grad()
    def latents(self, text: TextEmbedding, eps: Tensor) -> Tensor:
        """End of the trajectories that start from `eps`, [B, C, h, w]."""
        predict = self.family.bind_guided(self.network, text, self.null, self.settings.guidance_scale)
        return rollout(predict, self.schedule, eps, self.settings.sigmas.to(eps.device)).x

    def images(self, text: TextEmbedding, keys: Batch, seed: int) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] of B embedded prompts; keys[i] = (prompt, sample index) names the noise.

        An image depends on (seed, prompt index, sample index) alone: not on the batch, nor on who else is in it.
        """
        shape = self.decoder.latent_shape(self.settings.height, self.settings.width)
        eps = torch.cat([normal_per_sample(shape, seed, "picture", prompt, [sample]) for prompt, sample in keys])
        return self.decoder.decode(self.latents(text, eps.to(self.family.device)))

    def sweep(
        self, encoder: TextEncoder, prompts: Sequence[str], batches: Sequence[Batch], seed: int, *, progress: str = ""
    ) -> Iterator[tuple[Batch, Tensor]]:
        """(keys, images) of each batch of keys; a prompt is encoded once as long as its batches follow each other."""
        texts: dict[int, TextEmbedding] = {}
        for batch in tqdm(batches, desc=progress, disable=not progress):
            texts = {
                p: texts[p] if p in texts else encoder.encode([prompts[p]]) for p in dict.fromkeys(p for p, _ in batch)
            }
            rows = [texts[p] for p, _ in batch]
            text = TextEmbedding(torch.cat([row.context for row in rows]), torch.cat([row.pooled for row in rows]))
            yield batch, self.images(text, batch, seed)
