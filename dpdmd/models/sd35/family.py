"""Stable Diffusion 3.5 (Medium first; any StableDiffusion3Pipeline folder in the official layout)."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from dpdmd.models.base import TextEmbedding
from dpdmd.models.flow_family import FlowFamily
from dpdmd.models.noise_schedule import NUM_TRAIN_TIMESTEPS
from dpdmd.models.pipeline_text_encoder import PipelineTextEncoder
from dpdmd.models.sd35.layout import LAYOUT
from dpdmd.models.sd35.original_layout import original_layout
from dpdmd.models.tensor_files import LazyTensor, Weights


class SD35TextEncoder(PipelineTextEncoder):
    """Two CLIPs and a T5, run by diffusers' own `encode_prompt`; without the T5 its tokens are zeros."""

    def __init__(self, family: FlowFamily, folder: Path, max_sequence_length: int, *, no_t5: bool = False):
        super().__init__(family, folder, max_sequence_length, no_t5=no_t5)
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


class SD35(FlowFamily):
    """StableDiffusion3Pipeline: rectified flow, an SD3Transformer2DModel that predicts the velocity."""

    layout = LAYOUT
    network_class = SD3Transformer2DModel
    pipeline_class = StableDiffusion3Pipeline
    block_classes = ("JointTransformerBlock",)
    text_encoder_class = SD35TextEncoder

    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        # sigma reaches the network in fp32: bf16 would merge the 1000 times into 351.
        with self.autocast(z.device):
            prediction = network(
                hidden_states=z,
                timestep=sigma * NUM_TRAIN_TIMESTEPS,
                encoder_hidden_states=text.context,
                pooled_projections=text.pooled,
                return_dict=False,
            )[0]
        return prediction.float()

    def original_layout(self, parts: Mapping[str, Weights], source: Path) -> dict[str, LazyTensor]:
        return original_layout(parts, source)


FAMILY = SD35
