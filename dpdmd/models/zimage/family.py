"""Z-Image (any ZImagePipeline folder in the official layout)."""

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn

from dpdmd.models.base import TextEmbedding
from dpdmd.models.flow_family import EvenFlowFamily
from dpdmd.models.noise_schedule import NUM_TRAIN_TIMESTEPS
from dpdmd.models.pipeline_text_encoder import PipelineTextEncoder
from dpdmd.models.tensor_files import LazyTensor, Weights
from dpdmd.models.zimage.layout import LAYOUT, PATCH
from dpdmd.models.zimage.original_layout import original_layout


class ZImageTextEncoder(PipelineTextEncoder):
    """A Qwen3, run by diffusers' own `encode_prompt`: the last layer but one, without the padding of a prompt."""

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        contexts, _ = self.pipe.encode_prompt(
            list(prompts),  # diffusers writes the chat template into the list that it gets
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.max_sequence_length,
        )
        return TextEmbedding.of_lengths(contexts)


class ZImage(EvenFlowFamily):
    """ZImagePipeline: rectified flow, a ZImageTransformer2DModel that predicts the velocity with the other sign.

    The network fills the tokens of each prompt to a multiple of 32 with a trained token that the image attends to. So
    it must get each prompt at its own length: tokens that only fill the batch would become words.
    """

    layout = LAYOUT
    network_class = ZImageTransformer2DModel
    pipeline_class = ZImagePipeline
    block_classes = ("ZImageTransformerBlock",)
    text_encoder_class = ZImageTextEncoder

    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        # The time is rounded as the pipeline rounds it. The network multiplies it by 1000, and so a rounding error too.
        time = (NUM_TRAIN_TIMESTEPS - sigma * NUM_TRAIN_TIMESTEPS) / NUM_TRAIN_TIMESTEPS
        with self.autocast(z.device):
            frames = [latent[:, None] for latent in z]  # of a video of one frame
            predictions = network(frames, time, text.contexts(), return_dict=False)[0]
        return -torch.stack([prediction[:, 0] for prediction in predictions]).float()

    def guide(self, unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
        """Return c + s (c - u)."""
        return conditional + scale * (conditional - unconditional)

    def feature_blocks(self, network: nn.Module) -> list[nn.Module]:
        return list(network.layers)

    def image_tokens(self, output: Tensor, z: Tensor, text: TextEmbedding) -> Tensor:
        """Return the first tokens; those of the prompt, and those that fill up, come after them."""
        return output[:, : z.shape[-2] * z.shape[-1] // PATCH**2]

    def original_layout(self, parts: Mapping[str, Weights], source: Path) -> dict[str, LazyTensor]:
        return original_layout(parts)


FAMILY = ZImage
