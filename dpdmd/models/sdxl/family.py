"""Stable Diffusion XL (any StableDiffusionXLPipeline folder of the base model's layout; not the refiner)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from dpdmd.models.base import Family, TextEmbedding, TextEncoder
from dpdmd.models.image_decoder import KLImageDecoder
from dpdmd.models.loading import load_strict, load_text_encoders
from dpdmd.models.noise_schedule import EpsilonSchedule
from dpdmd.models.pipeline_export import makes_grid, set_student_steps
from dpdmd.models.sampling_defaults import SamplingDefaults, read_sampling_defaults
from dpdmd.models.scheduler_fit import fit_euler_scheduler
from dpdmd.models.sdxl.layout import LAYOUT, SCHEDULE, read_schedule
from dpdmd.models.sdxl.original_layout import original_layout
from dpdmd.models.tensor_files import LazyTensor, Weights


class SDXLTextEncoder(TextEncoder):
    """Two CLIPs, run by diffusers' own `encode_prompt`: the last layer but one of both, the second's pooled output.

    The empty prompt, unconditional under guidance, is zeros if model_index.json sets force_zeros_for_empty_prompt. The
    base model sets it: it was trained with zeros in the place of a dropped prompt, so its unconditional branch has
    never seen the CLIPs' embedding of "".
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
            **load_text_encoders(LAYOUT, folder, dtype),
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

    Its autoencoder overflows in fp16, so diffusers computes it in fp32. Here it runs in fp32 or bf16, which has the
    range of fp32.
    """

    layout = LAYOUT
    pipeline = StableDiffusionXLPipeline
    block_classes = ("BasicTransformerBlock", "ResnetBlock2D")

    def load_network(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        return load_strict(UNet2DConditionModel, folder / LAYOUT.network, dtype, exact=True)

    def load_text_encoder(self, folder: Path, max_sequence_length: int, *, no_t5: bool = False) -> SDXLTextEncoder:
        return SDXLTextEncoder(folder, self.device, self.compute_dtype)  # the tokenizers have the length

    def load_image_decoder(self, folder: Path) -> KLImageDecoder:
        return KLImageDecoder(folder, self.device, self.compute_dtype)

    def load_schedule(self, folder: Path) -> EpsilonSchedule:
        return read_schedule(folder)

    def library_sigmas(self, folder: Path, steps: int | None = None) -> Tensor:
        if steps:
            scheduler = _load_scheduler(folder, steps_offset=read_schedule(folder).steps_offset)
            scheduler.set_timesteps(steps)
        else:
            scheduler = _load_scheduler(folder)
            set_student_steps(scheduler, read_sampling_defaults(folder, LAYOUT.defaults))
        return scheduler.sigmas

    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        # Original size, corner of the crop and target size, in pixels: the whole image at the size of the latents.
        size = [side * LAYOUT.vae_factor for side in z.shape[-2:]]
        time_ids = torch.tensor([*size, 0, 0, *size], dtype=torch.float32, device=z.device)
        with torch.autocast(z.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
            prediction = network(
                sample=z,
                timestep=SCHEDULE.times(sigma),
                encoder_hidden_states=text.context,
                added_cond_kwargs={"text_embeds": text.pooled, "time_ids": time_ids.expand(len(z), -1)},
                return_dict=False,
            )[0]
        return prediction.float()

    def export_scheduler(self, folder: Path, source: Path, defaults: SamplingDefaults) -> SamplingDefaults:
        """Write scheduler/ of an exported student or LoRA. Return `defaults` with what the scheduler needs.

        A plain `pipe(num_inference_steps=N)` is right on the default grid, and on every other grid whose times are as
        far apart, by another `steps_offset`. Any other grid is given as `sigmas=`, which the scheduler takes as they
        are, the final 0 included. The spacing "trailing" would start from noise of a smaller variance.
        """
        schedule, sigmas = read_schedule(source), defaults.sigmas
        own = {"steps_offset": schedule.steps_offset}
        values, defaults = own, defaults.on_grid()
        if sigmas and not torch.equal(torch.tensor(sigmas), schedule.default_sigmas(defaults.steps)):
            fitted = fit_euler_scheduler(schedule.times(torch.tensor(sigmas[:-1])).tolist())
            if makes_grid(_load_scheduler(source, **fitted), sigmas):
                values, defaults = fitted, defaults.on_grid(own_scheduler=own)
            else:
                defaults = defaults.on_grid(sigmas_argument=sigmas)
        _load_scheduler(source, **values).save_pretrained(folder / "scheduler")
        return defaults

    def original_layout(self, parts: Mapping[str, Weights], source: Path) -> dict[str, LazyTensor]:
        return original_layout(parts, source)


def _load_scheduler(folder: Path, **values: int) -> EulerDiscreteScheduler:
    """Load the scheduler of a folder, with `values` in its configuration."""
    return EulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True, **values)


FAMILY = SDXL
