"""Stable Diffusion 3.5 (Medium first; any StableDiffusion3Pipeline folder in the official layout)."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from dpdmd.models import lora_files
from dpdmd.models.base import Family, TextEmbedding, TextEncoder
from dpdmd.models.image_decoder import KLImageDecoder
from dpdmd.models.loading import load_strict, load_text_encoders
from dpdmd.models.lora import Adapter
from dpdmd.models.noise_schedule import NUM_TRAIN_TIMESTEPS, FlowSchedule
from dpdmd.models.pipeline_export import export_network, export_unchanged
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.sd35.layout import LAYOUT, read_schedule


class SD35TextEncoder(TextEncoder):
    """Two CLIPs and a T5, run by diffusers' own `encode_prompt`; without the T5 its tokens are zeros."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, max_sequence_length: int, no_t5: bool):
        self.device = device
        self.max_sequence_length = max_sequence_length
        # diffusers needs an explicit None for a missing T5, even if the folder's own index has it as null.
        present = LAYOUT.components(folder, no_t5=no_t5)
        left_out = dict.fromkeys(["transformer", "vae", *(name for name in LAYOUT.t5 if name not in present)])
        encoders = load_text_encoders(LAYOUT, folder, dtype, no_t5=no_t5)
        self.pipe = StableDiffusion3Pipeline.from_pretrained(
            folder, dtype=dtype, local_files_only=True, **left_out, **encoders
        ).to(device)
        if self.pipe.text_encoder_3 is None:
            # diffusers reads the width of the zeros from the transformer's configuration, and nothing else.
            self.pipe.transformer = SimpleNamespace(config=SimpleNamespace(**LAYOUT.network_config(folder)))

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        context, _, pooled, _ = self.pipe.encode_prompt(
            prompt=prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return TextEmbedding(context, pooled)


class SD35(Family):
    """StableDiffusion3Pipeline: rectified flow, an SD3Transformer2DModel that predicts the velocity."""

    layout = LAYOUT
    block_classes = ("JointTransformerBlock",)

    def load_network(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        return load_strict(SD3Transformer2DModel, folder / LAYOUT.network, dtype, exact=True)

    def load_text_encoder(self, folder: Path, max_sequence_length: int, *, no_t5: bool = False) -> SD35TextEncoder:
        return SD35TextEncoder(folder, self.device, self.compute_dtype, max_sequence_length, no_t5)

    def load_image_decoder(self, folder: Path) -> KLImageDecoder:
        return KLImageDecoder(folder, self.device, self.compute_dtype)

    def load_schedule(self, folder: Path) -> FlowSchedule:
        return read_schedule(folder)

    def library_sigmas(self, folder: Path, steps: int, sigmas: tuple[float, ...] | None = None) -> Tensor:
        if sigmas:
            scheduler = _load_scheduler(folder)
            scheduler.set_timesteps(sigmas=list(sigmas[:-1]))
        else:
            scheduler = _load_scheduler(folder, shift=read_schedule(folder).shift)
            scheduler.set_timesteps(steps)
        return scheduler.sigmas

    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        # sigma reaches the network in fp32: bf16 would merge the 1000 times into 351.
        # A call uses each weight once, so autocast's cache of their bf16 copies would only hold memory.
        bf16 = self.compute_dtype != torch.float32
        with torch.autocast(z.device.type, self.compute_dtype, enabled=bf16, cache_enabled=False):
            prediction = network(
                hidden_states=z,
                timestep=sigma * NUM_TRAIN_TIMESTEPS,
                encoder_hidden_states=text.context,
                pooled_projections=text.pooled,
                return_dict=False,
            )[0]
        return prediction.float()

    def export(
        self, folder: Path, network_state: dict[str, Tensor], source: Path, defaults: SamplingDefaults, *, copy: bool
    ) -> None:
        components = LAYOUT.components(source, no_t5=defaults.no_t5)
        unchanged = [name for name in components if name not in (LAYOUT.network, "scheduler")]
        export_unchanged(folder, source, unchanged, without=LAYOUT.t5 if defaults.no_t5 else (), copy=copy)
        export_network(SD3Transformer2DModel, folder / LAYOUT.network, network_state, source / LAYOUT.network)
        _export_scheduler(folder, source, defaults).write(folder)

    def export_lora(
        self, folder: Path, state: dict[str, Tensor], adapter: Adapter, source: Path, defaults: SamplingDefaults
    ) -> None:
        lora_files.save_lora(folder, state, adapter, StableDiffusion3Pipeline, LAYOUT.network)
        _export_scheduler(folder, source, defaults).with_base(source, folder).write(folder)

    def read_lora(self, folder: Path) -> dict[str, Tensor]:
        return lora_files.read_lora(folder, LAYOUT.network)

    def load_lora(self, network: nn.Module, folder: Path) -> None:
        lora_files.load_lora(network, folder, StableDiffusion3Pipeline, LAYOUT.network)


def _load_scheduler(folder: Path, **values: float) -> FlowMatchEulerDiscreteScheduler:
    """Load the scheduler of a folder, with `values` in its configuration."""
    return FlowMatchEulerDiscreteScheduler.from_pretrained(
        folder, subfolder="scheduler", local_files_only=True, **values
    )


def _export_scheduler(folder: Path, source: Path, defaults: SamplingDefaults) -> SamplingDefaults:
    """Write scheduler/ of an exported student or LoRA. Return `defaults` with the shift that the file no longer has.

    On the default grid a plain `pipe(num_inference_steps=N)` is right. Any other grid is given as `sigmas=`, which the
    scheduler would shift once more. So the file's shift is then 1, and the sigmas of `defaults` are final.
    """
    schedule = read_schedule(source)
    final = defaults.sigmas and not torch.equal(torch.tensor(defaults.sigmas), schedule.default_sigmas(defaults.steps))
    _load_scheduler(source, shift=1.0 if final else schedule.shift).save_pretrained(folder / "scheduler")
    return replace(defaults, shift=schedule.shift if final else None)


FAMILY = SD35
