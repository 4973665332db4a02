"""Stable Diffusion XL (any StableDiffusionXLPipeline folder of the base model's layout; not the refiner)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn

from dpdmd.config.precisions import Precisions
from dpdmd.models.base import UNQUANTIZED_MODEL, TextEmbedding
from dpdmd.models.diffusers_family import DiffusersFamily, SchedulerValues
from dpdmd.models.discrete_schedule import DiscreteSchedule
from dpdmd.models.pipeline_text_encoder import PipelineTextEncoder
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.scheduler_fit import fit_euler_scheduler
from dpdmd.models.sdxl.layout import LAYOUT, SCHEDULE, read_schedule
from dpdmd.models.sdxl.original_layout import original_layout
from dpdmd.models.tensor_files import LazyTensor, Weights


class SDXLTextEncoder(PipelineTextEncoder):
    """Two CLIPs, run by diffusers' own `encode_prompt`: the last layer but one of both, the second's pooled output.

    The empty prompt, unconditional under guidance, is zeros if model_index.json sets force_zeros_for_empty_prompt. The
    base model sets it: it was trained with zeros in the place of a dropped prompt, so its unconditional branch has
    never seen the CLIPs' embedding of "".
    """

    options: Mapping[str, bool] = {"add_watermarker": False}

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        context, _, pooled, _ = self.pipe.encode_prompt(  # the tokenizers have the length
            prompt=prompts, device=self.device, do_classifier_free_guidance=False
        )
        if self.pipe.config.force_zeros_for_empty_prompt:
            empty = [row for row, prompt in enumerate(prompts) if not prompt]
            context[empty], pooled[empty] = 0, 0
        return TextEmbedding(context, pooled)


class SDXL(DiffusersFamily):
    """StableDiffusionXLPipeline: discrete-time diffusion, a UNet2DConditionModel that predicts the noise or v.

    The scheduler's file says what the network predicts, and which noise level each of its times has. Until
    `load_schedule` is called, the times are the base model's.

    The autoencoder overflows in fp16, so diffusers computes it in fp32. Here it runs in fp32 or bf16, which has the
    range of fp32.
    """

    layout = LAYOUT
    network_class = UNet2DConditionModel
    pipeline_class = StableDiffusionXLPipeline
    scheduler_class = EulerDiscreteScheduler
    block_classes = ("BasicTransformerBlock", "ResnetBlock2D")
    text_encoder_class = SDXLTextEncoder

    def __init__(self, device: torch.device, compute_dtype: torch.dtype, precisions: Precisions = UNQUANTIZED_MODEL):
        super().__init__(device, compute_dtype, precisions)
        self._schedule: DiscreteSchedule = SCHEDULE

    def load_schedule(self, folder: Path) -> DiscreteSchedule:
        self._schedule = read_schedule(folder)
        return self._schedule

    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        # Original size, corner of the crop and target size, in pixels: the whole image at the size of the latents.
        # Filled on the device, since a copy from the host would wait for it.
        height, width = (side * LAYOUT.vae_factor for side in z.shape[-2:])
        time_ids = torch.zeros(6, device=z.device)
        time_ids[0::4], time_ids[1::4] = height, width
        with self.autocast(z.device):
            prediction = network(
                sample=z,
                timestep=self._schedule.times(sigma),
                encoder_hidden_states=text.context,
                added_cond_kwargs={"text_embeds": text.pooled, "time_ids": time_ids.expand(len(z), -1)},
                return_dict=False,
            )[0]
        return prediction.float()

    def own_values(self, schedule: DiscreteSchedule) -> SchedulerValues:
        return {"steps_offset": schedule.steps_offset}

    def fit_scheduler(self, schedule: DiscreteSchedule, sigmas: Sequence[float]) -> SchedulerValues:
        """Propose another `steps_offset`. The spacing "trailing" would start from noise of a smaller variance."""
        return fit_euler_scheduler(schedule.times(torch.tensor(sigmas[:-1])).tolist())

    def for_given_sigmas(
        self, schedule: DiscreteSchedule, sigmas: tuple[float, ...], defaults: SamplingDefaults
    ) -> tuple[SchedulerValues, SamplingDefaults]:
        """Return the model's own values: the scheduler takes sigmas as they are, the final 0 included."""
        return self.own_values(schedule), defaults.on_grid(sigmas_argument=sigmas)

    def original_layout(self, parts: Mapping[str, Weights], source: Path) -> dict[str, LazyTensor]:
        return original_layout(parts, source)


FAMILY = SDXL
