"""FLUX.2-klein (any Flux2KleinPipeline folder)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor, nn

from dpdmd.config.image_sizes import ImageSize
from dpdmd.models.base import TextEmbedding
from dpdmd.models.flow_family import EvenFlowFamily
from dpdmd.models.flux2_klein.image_decoder import Flux2ImageDecoder
from dpdmd.models.flux2_klein.layout import FACTOR, HIDDEN_STATES, LAYOUT
from dpdmd.models.flux2_klein.original_layout import original_transformer
from dpdmd.models.noise_schedule import NUM_TRAIN_TIMESTEPS
from dpdmd.models.pipeline_text_encoder import PipelineTextEncoder
from dpdmd.models.tensor_files import LazyTensor, Weights


class Flux2KleinTextEncoder(PipelineTextEncoder):
    """A Qwen3, run by diffusers' own `encode_prompt`: three hidden states of each token, beside each other.

    Each prompt is filled to `max_sequence_length`, and the network attends to the filling too.
    """

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        context, _ = self.pipe.encode_prompt(
            list(prompts),
            device=self.device,
            max_sequence_length=self.max_sequence_length,
            text_encoder_out_layers=HIDDEN_STATES,
        )
        return TextEmbedding(context)


class Flux2Klein(EvenFlowFamily):
    """Flux2KleinPipeline: rectified flow, a Flux2Transformer2DModel that predicts the velocity.

    Double blocks keep text and image apart. Single blocks take both in one sequence, the text first.
    """

    layout = LAYOUT
    network_class = Flux2Transformer2DModel
    pipeline_class = Flux2KleinPipeline
    block_classes = ("Flux2TransformerBlock", "Flux2SingleTransformerBlock")
    text_encoder_class = Flux2KleinTextEncoder
    decoder_class = Flux2ImageDecoder

    def pipeline_mu(self, scheduler: Any, steps: int, size: ImageSize) -> float:
        return compute_empirical_mu(size.height * size.width // FACTOR**2, steps)

    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        # The time is rounded as the pipeline rounds it. The network takes the type of the time from the tokens: fp32.
        height, width = z.shape[-2:]
        with self.autocast(z.device):
            prediction = network(
                hidden_states=z.flatten(2).mT,
                encoder_hidden_states=text.context,
                timestep=sigma * NUM_TRAIN_TIMESTEPS / NUM_TRAIN_TIMESTEPS,
                img_ids=_positions(1, height, width, 1, device=z.device),
                txt_ids=_positions(1, 1, 1, text.context.shape[1], device=z.device),
                return_dict=False,
            )[0]
        return prediction.float().mT.unflatten(2, (height, width)).contiguous()

    def image_tokens(self, output: Tensor | tuple[Tensor, ...], z: Tensor, text: TextEmbedding) -> Tensor:
        """Return the image's stream of a double block, and the tokens after the text's of a single one."""
        if isinstance(output, tuple):
            return super().image_tokens(output, z, text)
        return output[:, -z.shape[-2] * z.shape[-1] :]

    def original_layout(self, parts: Mapping[str, Weights], source: Path) -> dict[str, LazyTensor]:
        return original_transformer(parts["transformer"])


def _positions(*counts: int, device: torch.device) -> Tensor:
    """Return the positions (frame, row, column, word) of each token, [tokens, 4]."""
    return torch.cartesian_prod(*(torch.arange(count, device=device) for count in counts))


FAMILY = Flux2Klein
