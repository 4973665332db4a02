"""(prompts, seeds) -> pictures, of a run's student, a checkpoint or any pipeline folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dpdmd.families import family_class
from dpdmd.families.base import Family, ImageDecoder, TextEmbedding, TextEncoder
from dpdmd.families.layouts import LAYOUTS, read_note
from dpdmd.rng import normal_per_sample
from dpdmd.rollout import rollout
from dpdmd.run_folder import RunFolder
from dpdmd.schedules import FlowSchedule, default_sigmas


@dataclass(frozen=True)
class SamplerSettings:
    """How a model samples: `sigmas` [N + 1], guidance, and the size in pixels."""

    sigmas: Tensor
    guidance_scale: float
    height: int
    width: int


@dataclass
class Sampler:
    """A network with all it takes to make pictures; used by training, evaluation and `dpdmd.generate` alike."""

    family: Family
    network: nn.Module
    schedule: FlowSchedule
    decoder: ImageDecoder
    null: TextEmbedding
    settings: SamplerSettings

    @torch.no_grad()
    def latents(self, text: TextEmbedding, eps: Tensor) -> Tensor:
        """End of the trajectories that start from `eps`, [B, C, h, w]."""
        predict = self.family.bind_guided(self.network, text, self.null, self.settings.guidance_scale)
        return rollout(predict, self.schedule, eps, self.settings.sigmas.to(eps.device)).x

    def pictures(self, text: TextEmbedding, keys: Sequence[tuple[int, int]], seed: int) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] of B embedded prompts; keys[i] = (prompt, sample index) names the noise.

        A picture depends on (seed, prompt index, sample index) alone: not on the batch, nor on who else is in it.
        """
        shape = self.decoder.latent_shape(self.settings.height, self.settings.width)
        eps = torch.cat([normal_per_sample(shape, seed, "picture", prompt, [sample]) for prompt, sample in keys])
        return self.decoder.decode(self.latents(text, eps.to(self.family.device)))

    def sweep(
        self,
        encoder: TextEncoder,
        prompts: Sequence[str],
        num_samples: int,
        seed: int,
        batch_size: int,
        *,
        progress: str = "",
    ) -> Iterator[tuple[list[tuple[int, int]], Tensor]]:
        """`num_samples` pictures of every prompt, in batches of (keys, pictures); each prompt is encoded once."""
        keys = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(num_samples)]
        texts: dict[int, TextEmbedding] = {}
        for start in tqdm(range(0, len(keys), batch_size), desc=progress, disable=not progress):
            batch = keys[start : start + batch_size]
            texts = {
                p: texts[p] if p in texts else encoder.encode([prompts[p]]) for p in dict.fromkeys(p for p, _ in batch)
            }
            rows = [texts[p] for p, _ in batch]
            text = TextEmbedding(torch.cat([row.context for row in rows]), torch.cat([row.pooled for row in rows]))
            yield batch, self.pictures(text, batch, seed)


def find_pipeline(path: Path) -> Path:
    """The pipeline folder that `path` means: itself, a checkpoint's student, or a run's newest student.

    Raises:
        ValueError: none of the three.
    """
    latest = RunFolder.of(path).latest()
    for candidate in (path, path / "student", latest / "student" if latest else path):
        if (candidate / "model_index.json").is_file():
            return candidate
    raise ValueError(
        f"--model {path}: neither a pipeline folder (no model_index.json) nor a checkpoint nor a run with one"
    )


def load_sampler(
    path: Path,
    device: torch.device,
    *,
    family_name: str = "sd35",
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    max_sequence_length: int | None = None,
) -> tuple[Sampler, TextEncoder]:
    """Load a model to sample from; what is not given is what the folder's own note says, else the family's default.

    Raises:
        ValueError: not a whole pipeline folder, or a size that the model cannot make.
    """
    folder, layout = find_pipeline(path), LAYOUTS[family_name]
    layout.check(folder, "--model")
    note = read_note(folder)
    height, width = height or layout.default_size(folder), width or layout.default_size(folder)
    layout.check_size(folder, height, width)
    family = family_class(family_name)(device, dtype)
    schedule = family.load_schedule(folder)
    sigmas = torch.tensor(note.sigmas) if note.sigmas and steps in (None, len(note.sigmas) - 1) else None
    settings = SamplerSettings(
        default_sigmas(steps or note.steps, schedule.shift) if sigmas is None else sigmas,
        note.guidance_scale if guidance_scale is None else guidance_scale,
        height,
        width,
    )
    encoder = family.load_text_encoder(folder, max_sequence_length or note.max_sequence_length)
    network = family.load_network(folder, dtype).requires_grad_(False).to(device)
    decoder = family.load_image_decoder(folder)
    return Sampler(family, network, schedule, decoder, encoder.encode([""]), settings), encoder
