"""Stable Diffusion 3.5 (Medium first; any StableDiffusion3Pipeline folder in the official layout)."""

import shutil
from dataclasses import replace
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpdmd.families.adapters import Adapter
from dpdmd.families.base import Family, ImageDecoder, TextEmbedding, TextEncoder
from dpdmd.families.layouts import LORA_WEIGHTS, Note
from dpdmd.families.layouts import SD35 as LAYOUT
from dpdmd.lora import COMFYUI_WEIGHTS, for_comfyui, peft_config
from dpdmd.schedules import NUM_TRAIN_TIMESTEPS, FlowSchedule, default_sigmas


class SD35TextEncoder(TextEncoder):
    """Two CLIPs and a T5, run by diffusers' own `encode_prompt`."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, max_sequence_length: int):
        self.device = device
        self.max_sequence_length = max_sequence_length
        self.pipe = StableDiffusion3Pipeline.from_pretrained(
            folder, transformer=None, vae=None, dtype=dtype, local_files_only=True
        ).to(device)

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


class SD35ImageDecoder(ImageDecoder):
    """The decoder half of the AutoencoderKL."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=dtype, local_files_only=True)
        self.vae.eval().requires_grad_(False).to(device)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.vae.config.latent_channels, height // self.factor, width // self.factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        raw = latents.to(self.vae.device) / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)
        return (self.vae.decode(raw.to(self.vae.dtype)).sample.float() / 2 + 0.5).clamp(0, 1)


class SD35(Family):
    """StableDiffusion3Pipeline: rectified flow, an SD3Transformer2DModel that predicts the velocity."""

    block_classes = ("JointTransformerBlock",)

    def __init__(self, device: torch.device, compute_dtype: torch.dtype):
        super().__init__(device, compute_dtype)
        # Long prompts are common and cut on purpose; a line for each, and a bar for each part, hide what matters.
        for library in (diffusers.utils.logging, transformers.utils.logging):
            library.set_verbosity_error()
            library.disable_progress_bar()

    def load_network(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        network, info = SD3Transformer2DModel.from_pretrained(
            folder, subfolder=LAYOUT.network, dtype=dtype, local_files_only=True, output_loading_info=True
        )
        wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        if wrong:  # diffusers only warns, and goes on with random numbers
            raise ValueError(
                f"{folder / LAYOUT.network}: {len(wrong)} weights do not fit its config.json ({wrong[0]}, ...)"
            )
        return network.eval()

    def load_text_encoder(self, folder: Path, max_sequence_length: int) -> SD35TextEncoder:
        return SD35TextEncoder(folder, self.device, self.compute_dtype, max_sequence_length)

    def load_image_decoder(self, folder: Path) -> SD35ImageDecoder:
        return SD35ImageDecoder(folder, self.device, self.compute_dtype)

    def load_schedule(self, folder: Path) -> FlowSchedule:
        return FlowSchedule(LAYOUT.shift(folder))

    def library_sigmas(self, folder: Path, steps: int, sigmas: tuple[float, ...] | None = None) -> Tensor:
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(
            folder, subfolder="scheduler", local_files_only=True
        )
        if sigmas:
            scheduler.set_timesteps(sigmas=list(sigmas[:-1]))
        else:
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

    def export(self, folder: Path, network_state: dict[str, Tensor], source: Path, note: Note, *, copy: bool) -> None:
        source = source.resolve()
        folder.mkdir(parents=True)
        for part in LAYOUT.parts(source):
            if part in (LAYOUT.network, "scheduler"):
                continue
            if copy:
                shutil.copytree(source / part, folder / part)
            else:
                (folder / part).symlink_to(source / part)
        shutil.copy(source / "model_index.json", folder)
        transformer = SD3Transformer2DModel.from_config(SD3Transformer2DModel.load_config(source / LAYOUT.network))
        transformer.load_state_dict(network_state, strict=True, assign=True)
        transformer.save_pretrained(folder / LAYOUT.network)
        self._export_scheduler(folder, source, note)
        note.write(folder)

    def _export_scheduler(self, folder: Path, source: Path, note: Note) -> None:
        # On the default grid a plain `pipe(num_inference_steps=N)` is right. Any other is given as `sigmas=`, which
        # the scheduler would shift once more: so its shift is saved as 1, and the note's sigmas are final.
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(source, subfolder="scheduler")
        default = default_sigmas(note.steps, scheduler.config.shift)
        if note.sigmas and not torch.equal(torch.tensor(note.sigmas), default):
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(scheduler.config, shift=1.0)
        scheduler.save_pretrained(folder / "scheduler")

    def export_lora(self, folder: Path, state: dict[str, Tensor], adapter: Adapter, source: Path, note: Note) -> None:
        state = {name: value.contiguous() for name, value in state.items()}
        StableDiffusion3Pipeline.save_lora_weights(
            folder, transformer_lora_layers=state, transformer_lora_adapter_metadata=peft_config(adapter).to_dict()
        )
        save_file(for_comfyui(state, adapter.alpha, LAYOUT.network), folder / COMFYUI_WEIGHTS)
        self._export_scheduler(folder, source, note)
        replace(note, base=str(source)).write(folder)

    def read_lora(self, folder: Path) -> dict[str, Tensor]:
        prefix = f"{LAYOUT.network}."
        return {name.removeprefix(prefix): value for name, value in load_file(folder / LORA_WEIGHTS).items()}

    def load_lora(self, network: nn.Module, folder: Path) -> None:
        state, metadata = StableDiffusion3Pipeline.lora_state_dict(
            folder, weight_name=LORA_WEIGHTS, return_lora_metadata=True, local_files_only=True, use_safetensors=True
        )
        layers = dict(network.named_modules())
        for name in state:
            layer = name.removeprefix(f"{LAYOUT.network}.").partition(".lora_")[0]
            if layer not in layers:  # diffusers only warns
                raise ValueError(f"{folder / LORA_WEIGHTS} changes {layer}, which the network has not")
        network.load_lora_adapter(state, prefix=LAYOUT.network, metadata=metadata)
