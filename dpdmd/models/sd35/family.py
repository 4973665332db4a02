"""Stable Diffusion 3.5 (Medium first; any StableDiffusion3Pipeline folder in the official layout)."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn

from dpdmd.models.base import TextEmbedding, TextEncoder
from dpdmd.models.flow_family import FlowFamily
from dpdmd.models.loading import load_text_encoders
from dpdmd.models.noise_schedule import NUM_TRAIN_TIMESTEPS
from dpdmd.models.sd35.layout import LAYOUT
from dpdmd.models.sd35.original_layout import original_layout
from dpdmd.models.tensor_files import LazyTensor, Weights


class SD35TextEncoder(TextEncoder):
    """Two CLIPs and a T5, run by diffusers' own `encode_prompt`; without the T5 its tokens are zeros."""

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        precision: str,
        max_sequence_length: int,
        no_t5: bool,
    ):
        self.device = device
        self.max_sequence_length = max_sequence_length
        # diffusers needs an explicit None for a missing T5, even if the folder's own index has it as null.
        present = LAYOUT.components(folder, no_t5=no_t5)
        left_out = dict.fromkeys(["transformer", "vae", *(name for name in LAYOUT.t5 if name not in present)])
        encoders = load_text_encoders(LAYOUT, folder, dtype, precision, device, no_t5=no_t5)
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


class SD35(FlowFamily):
    """StableDiffusion3Pipeline: rectified flow, an SD3Transformer2DModel that predicts the velocity."""

    layout = LAYOUT
    network_class = SD3Transformer2DModel
    pipeline_class = StableDiffusion3Pipeline
    block_classes = ("JointTransformerBlock",)

    def load_text_encoder(self, folder: Path, max_sequence_length: int, *, no_t5: bool = False) -> SD35TextEncoder:
        precision = self.precisions.text_encoders
        return SD35TextEncoder(folder, self.device, self.compute_dtype, precision, max_sequence_length, no_t5)

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
