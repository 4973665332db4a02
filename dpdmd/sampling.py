"""(prompts, seeds) -> pictures, of a run's student, a checkpoint or any pipeline folder."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dpdmd.families import family_class
from dpdmd.families.base import Family, ImageDecoder, TextEmbedding, TextEncoder
from dpdmd.families.layouts import LAYOUTS, Note, read_note
from dpdmd.rng import normal_per_sample
from dpdmd.rollout import rollout
from dpdmd.run_folder import RunFolder
from dpdmd.schedules import FlowSchedule, default_sigmas
from dpdmd.weight_files import read_checkpoint

STUDENT_NOTE = Note(steps=4, guidance_scale=1.0)  # paper: 4 steps, no guidance
Batch = list[tuple[int, int]]  # keys (prompt index, sample index) of pictures that are made together


def batches_of(num_prompts: int, num_samples: int, batch_size: int) -> list[Batch]:
    """`num_samples` pictures of each prompt in batches: the same ones however many processes share them."""
    keys = [(prompt, sample) for prompt in range(num_prompts) for sample in range(num_samples)]
    return [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]


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

    def pictures(self, text: TextEmbedding, keys: Batch, seed: int) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] of B embedded prompts; keys[i] = (prompt, sample index) names the noise.

        A picture depends on (seed, prompt index, sample index) alone: not on the batch, nor on who else is in it.
        """
        shape = self.decoder.latent_shape(self.settings.height, self.settings.width)
        eps = torch.cat([normal_per_sample(shape, seed, "picture", prompt, [sample]) for prompt, sample in keys])
        return self.decoder.decode(self.latents(text, eps.to(self.family.device)))

    def sweep(
        self, encoder: TextEncoder, prompts: Sequence[str], batches: Sequence[Batch], seed: int, *, progress: str = ""
    ) -> Iterator[tuple[Batch, Tensor]]:
        """(keys, pictures) of each batch of keys; a prompt is encoded once as long as its batches follow each other."""
        texts: dict[int, TextEmbedding] = {}
        for batch in tqdm(batches, desc=progress, disable=not progress):
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


def find_model(path: Path, base_model: Path | None) -> tuple[Path, Path | None]:
    """(pipeline folder, network's state dict or None) that `path` means.

    Raises:
        ValueError: nothing to sample from, or a state dict without `base_model`.
    """
    if path.suffix != ".pt":
        return find_pipeline(path), None
    if not path.is_file():
        raise ValueError(f"--model {path}: no such file")
    if base_model is None:
        raise ValueError(f"--model {path}: is a network alone; give the pipeline it is of as --base_model")
    return base_model, path


def load_sampler(
    path: Path,
    device: torch.device,
    *,
    base_model: Path | None = None,
    family_name: str = "sd35",
    dtype: torch.dtype = torch.float32,
    steps: int | None = None,
    guidance_scale: float | None = None,
    height: int | None = None,
    width: int | None = None,
    max_sequence_length: int | None = None,
) -> tuple[Sampler, TextEncoder]:
    """Load a model to sample from; what is not given is what the folder's own note says, else the family's default.

    Args:
        path: a run, a checkpoint, a pipeline folder, or a student's network as a state dict in a .pt file, as the
            authors' release saves it; all else is then `base_model`'s, and it samples in 4 steps without guidance.

    Raises:
        ValueError: not a whole pipeline folder, weights that do not fit, or a size that the model cannot make.
    """
    layout = LAYOUTS[family_name]
    folder, state_dict = find_model(path, base_model)
    layout.check(folder, "--base_model" if state_dict else "--model")
    note = STUDENT_NOTE if state_dict else read_note(folder)
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
    network = family.load_network(folder, dtype)
    if state_dict:
        try:
            network.load_state_dict(read_checkpoint(state_dict), strict=True)
        except RuntimeError as error:
            raise ValueError(f"--model {path}: does not fit {folder} ({' '.join(str(error).split())[:160]})") from None
    network = network.requires_grad_(False).to(device)
    decoder = family.load_image_decoder(folder)
    return Sampler(family, network, schedule, decoder, encoder.encode([""]), settings), encoder
