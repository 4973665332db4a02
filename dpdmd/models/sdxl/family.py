"""Stable Diffusion XL (any StableDiffusionXLPipeline folder of the base model's layout; not the refiner)."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from dpdmd.models.base import Family, TextEmbedding, TextEncoder
from dpdmd.models.common import (
    KLImageDecoder,
    attach_lora,
    export_network,
    export_parts,
    load_encoders,
    quieten_libraries,
    read_lora,
)
from dpdmd.models.layout import LORA_WEIGHTS
from dpdmd.models.loading import load_part
from dpdmd.models.lora import COMFYUI_WEIGHTS, for_comfyui, peft_config
from dpdmd.models.lora_config import Adapter
from dpdmd.models.noise_schedule import EpsilonSchedule
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.sdxl.layout import SDXL as LAYOUT
from dpdmd.models.sdxl.layout import SDXL_SCHEDULE, read_sdxl_schedule


class SDXLTextEncoder(TextEncoder):
    """Two CLIPs, run by diffusers' own `encode_prompt`: both's last but one layer, and the second's pooled output.

    The empty prompt, unconditional under guidance, is zeros where model_index.json sets force_zeros_for_empty_prompt.
    So it does for the base model, which was trained with zeros in the place of a dropped prompt: the CLIPs' embedding
    of "" is an input that its unconditional branch has not seen.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        self.device = device
        self.pipe = StableDiffusionXLPipeline.from_pretrained(
            folder,
            unet=None,
            vae=None,
            dtype=dtype,
            add_watermarker=False,
            local_files_only=True,
            **load_encoders(LAYOUT, folder, dtype),
        ).to(device)
        self.empty_is_zero = self.pipe.config.force_zeros_for_empty_prompt

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        context, _, pooled, _ = self.pipe.encode_prompt(
            prompt=prompts, device=self.device, do_classifier_free_guidance=False
        )
        if self.empty_is_zero:
            empty = [row for row, prompt in enumerate(prompts) if not prompt]
            context[empty], pooled[empty] = 0, 0
        return TextEmbedding(context, pooled)


class SDXL(Family):
    """StableDiffusionXLPipeline: discrete-time diffusion, a UNet2DConditionModel that predicts the noise.

    Its autoencoder overflows in fp16, where diffusers computes it in fp32. Here it runs in fp32 or bf16, which has the
    range of fp32.
    """

    block_classes = ("BasicTransformerBlock", "ResnetBlock2D")

    def __init__(self, device: torch.device, compute_dtype: torch.dtype):
        super().__init__(device, compute_dtype)
        quieten_libraries()

    def load_network(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        return load_part(UNet2DConditionModel, folder / LAYOUT.network, dtype, exact=True)

    def load_text_encoder(self, folder: Path, max_sequence_length: int, *, no_t5: bool = False) -> SDXLTextEncoder:
        return SDXLTextEncoder(folder, self.device, self.compute_dtype)  # its tokenizers know the length

    def load_image_decoder(self, folder: Path) -> KLImageDecoder:
        return KLImageDecoder(folder, self.device, self.compute_dtype)

    def load_schedule(self, folder: Path) -> EpsilonSchedule:
        return read_sdxl_schedule(folder)

    def library_sigmas(self, folder: Path, steps: int, sigmas: tuple[float, ...] | None = None) -> Tensor:
        scheduler = EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
        if sigmas:
            scheduler.set_timesteps(sigmas=list(sigmas))
        else:
            scheduler.set_timesteps(steps)
        return scheduler.sigmas

    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        # Original size, corner of the crop and target size, in pixels: a whole image of the size that is made.
        size = [side * LAYOUT.factor for side in z.shape[-2:]]
        time_ids = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=z.device)
        with torch.autocast(z.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            prediction = network(
                sample=z,
                timestep=SDXL_SCHEDULE.times(sigma),
                encoder_hidden_states=text.context,
                added_cond_kwargs={"text_embeds": text.pooled, "time_ids": time_ids.expand(len(z), -1)},
                return_dict=False,
            )[0]
        return prediction.float()

    def export(
        self, folder: Path, network_state: dict[str, Tensor], source: Path, defaults: SamplingDefaults, *, copy: bool
    ) -> None:
        # The scheduler stays the teacher's: on its default grid a plain `pipe(num_inference_steps=N)` is right, and any
        # other is given as `sigmas=`, which it takes as they are, the final 0 included.
        export_parts(folder, source, [part for part in LAYOUT.parts(source) if part != LAYOUT.network], copy=copy)
        export_network(UNet2DConditionModel, folder / LAYOUT.network, network_state, source / LAYOUT.network)
        defaults.write(folder)

    def export_lora(
        self, folder: Path, state: dict[str, Tensor], adapter: Adapter, source: Path, defaults: SamplingDefaults
    ) -> None:
        state = {name: value.contiguous() for name, value in state.items()}
        StableDiffusionXLPipeline.save_lora_weights(
            folder, unet_lora_layers=state, unet_lora_adapter_metadata=peft_config(adapter).to_dict()
        )
        named = for_comfyui(state, adapter.alpha, LAYOUT.network)
        save_file({_kohya_name(name): value for name, value in named.items()}, folder / COMFYUI_WEIGHTS)
        shutil.copytree(source / "scheduler", folder / "scheduler")
        replace(defaults, base=str(source)).write(folder)

    def read_lora(self, folder: Path) -> dict[str, Tensor]:
        return read_lora(folder, LAYOUT.network)

    def load_lora(self, network: nn.Module, folder: Path) -> None:
        state, _, metadata = StableDiffusionXLPipeline.lora_state_dict(
            folder, weight_name=LORA_WEIGHTS, return_lora_metadata=True, local_files_only=True, use_safetensors=True
        )
        attach_lora(network, LAYOUT.network, folder, state, metadata)


def _kohya_name(name: str) -> str:
    """unet.mid_block.x.lora_A.weight -> lora_unet_mid_block_x.lora_down.weight, as ComfyUI knows a UNet's layers."""
    for ending, theirs in ((".lora_A.weight", ".lora_down.weight"), (".lora_B.weight", ".lora_up.weight")):
        if name.endswith(ending):
            return f"lora_{name.removesuffix(ending).replace('.', '_')}{theirs}"
    return f"lora_{name.removesuffix('.alpha').replace('.', '_')}.alpha"
