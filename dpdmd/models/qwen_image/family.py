"""Qwen-Image (any QwenImagePipeline folder in the official layout)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImagePipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLTextModel

from dpdmd.config.image_sizes import ImageSize
from dpdmd.models.base import TextEmbedding
from dpdmd.models.flow_family import EvenFlowFamily
from dpdmd.models.loading import load_encoder
from dpdmd.models.noise_schedule import NUM_TRAIN_TIMESTEPS
from dpdmd.models.pipeline_text_encoder import PipelineTextEncoder
from dpdmd.models.qwen_image.image_decoder import QwenImageDecoder
from dpdmd.models.qwen_image.layout import LAYOUT, PATCH, TOKEN_SIDE
from dpdmd.models.tensor_files import LazyTensor, Weights


class QwenImageTextEncoder(PipelineTextEncoder):
    """The language model of a Qwen2.5-VL, run by diffusers' own `encode_prompt`; its vision tower is not loaded."""

    def load_encoders(self, family: EvenFlowFamily, folder: Path, *, no_t5: bool) -> dict[str, nn.Module]:
        part, precision = folder / "text_encoder", family.precisions.text_encoders
        config = Qwen2_5_VLConfig.from_pretrained(part, local_files_only=True).text_config
        names = {r"^model\.language_model\.": ""}  # of some versions of transformers
        arguments = (Qwen2_5_VLTextModel, part, family.compute_dtype, precision, family.device)
        return {"text_encoder": load_encoder(*arguments, config=config, key_mapping=names)}

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        context, mask = self.pipe.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        lengths = [context.shape[1]] * len(context) if mask is None else mask.sum(1).tolist()
        return TextEmbedding(context, None, tuple(lengths))


def pack(z: Tensor) -> Tensor:
    """Return latents [B, C, h, w] as tokens [B, hw / 4, 4C], row by row: channel, then place in the 2 x 2 patch."""
    return pixel_unshuffle(z, PATCH).flatten(2).mT


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens as latents of `height` x `width`; inverse of `pack`."""
    return pixel_shuffle(tokens.mT.unflatten(2, (height // PATCH, width // PATCH)), PATCH)


def _keep_times(network: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
    network.time_text_embed.times = given["timestep"]


def _restore_times(embedding: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return embedding.times, *args[1:]


class QwenImage(EvenFlowFamily):
    """QwenImagePipeline: rectified flow, a QwenImageTransformer2DModel that predicts the velocity.

    The image attends to the prompt's own tokens alone: those that only fill the batch are masked.
    """

    layout = LAYOUT
    network_class = QwenImageTransformer2DModel
    pipeline_class = QwenImagePipeline
    block_classes = ("QwenImageTransformerBlock",)
    text_encoder_class = QwenImageTextEncoder
    decoder_class = QwenImageDecoder

    def load_network(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        network = super().load_network(folder, dtype)
        # The network rounds its times to the type of its tokens, which is bf16 under autocast: .9009 and .9018 would be
        # one time. Its time embedding gets the times of the call instead.
        network.register_forward_pre_hook(_keep_times, with_kwargs=True)
        network.time_text_embed.register_forward_pre_hook(_restore_times)
        return network

    def pipeline_mu(self, scheduler: Any, steps: int, size: ImageSize) -> float:
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        tokens = size.height * size.width // TOKEN_SIDE**2
        return calculate_shift(tokens, *(scheduler.config[name] for name in names))

    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        height, width = z.shape[-2:]
        with self.autocast(z.device):
            tokens = network(
                hidden_states=pack(z),
                timestep=sigma * NUM_TRAIN_TIMESTEPS / NUM_TRAIN_TIMESTEPS,  # rounded as the pipeline rounds it
                encoder_hidden_states=text.context,
                encoder_hidden_states_mask=text.mask,
                img_shapes=[[(1, height // PATCH, width // PATCH)]] * len(z),
                return_dict=False,
            )[0]
        return unpack(tokens, height, width).float()

    def rescale(self, guided: Tensor, conditional: Tensor) -> Tensor:
        """Return `guided` with the norm of each token, of 2 x 2 latents, that the token has in `conditional`."""
        tokens = pack(guided)
        norms = pack(conditional).norm(dim=-1, keepdim=True) / tokens.norm(dim=-1, keepdim=True)
        return unpack(tokens * norms, *guided.shape[-2:])

    def original_layout(self, parts: Mapping[str, Weights], source: Path) -> dict[str, LazyTensor]:
        """Return the network alone, under the names of diffusers, which ComfyUI's files have too."""
        return dict(parts["transformer"])


FAMILY = QwenImage
