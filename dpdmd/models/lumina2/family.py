"""Lumina-Image 2.0 (any Lumina2Pipeline folder in the official layout)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel
from torch import Tensor, nn

from dpdmd.models.base import TextEmbedding
from dpdmd.models.flow_family import EvenFlowFamily
from dpdmd.models.lumina2.layout import LAYOUT, PATCH
from dpdmd.models.noise_schedule import NUM_TRAIN_TIMESTEPS
from dpdmd.models.pipeline_text_encoder import PipelineTextEncoder

REFINERS = "context_refiner", "noise_refiner"


class Lumina2TextEncoder(PipelineTextEncoder):
    """A Gemma 2, run by diffusers' own `encode_prompt`: the last layer but one, without the padding of a prompt.

    A system prompt stands before each prompt, but not before the unconditional one.
    """

    def __init__(self, family: EvenFlowFamily, folder: Path, max_sequence_length: int, *, no_t5: bool = False):
        super().__init__(family, folder, max_sequence_length, no_t5=no_t5)
        if not self.pipe.tokenizer(LAYOUT.guidance.null_prompt).input_ids:
            raise ValueError(f"{folder / 'tokenizer'}: an empty prompt has no token; set add_bos_token to true")

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        null = LAYOUT.guidance.null_prompt
        context, mask, null_context, null_mask = self.pipe.encode_prompt(
            prompts,
            do_classifier_free_guidance=null in prompts,
            negative_prompt=null,
            device=self.device,
            max_sequence_length=self.max_sequence_length,
        )
        contexts, masks = (
            [(of_null if prompt == null else of_prompt)[row] for row, prompt in enumerate(prompts)]
            for of_prompt, of_null in ((context, null_context), (mask, null_mask))
        )
        lengths = torch.stack(masks).sum(1).tolist()
        return TextEmbedding.of_lengths([row[:length] for row, length in zip(contexts, lengths, strict=True)])


@dataclass(frozen=True)
class HostMask:
    """A stand-in for a mask [B, L] of prompts on the device, for code that only reads their lengths."""

    shape: tuple[int, int]
    lengths: tuple[int, ...]

    def sum(self, dim: int) -> "HostMask":
        return self

    def tolist(self) -> list[int]:
        return list(self.lengths)


class Lumina2Network(Lumina2Transformer2DModel):
    """diffusers' network, but for three properties of a call that change no number beyond rounding.

    The lengths of the prompts are numbers on the host. diffusers reads them from a mask on the device and copies its
    tables of rotations there, so every call would wait for the GPU, and none could be counted without data
    (`counted_memory.py`). The tables are in fp32, not in fp64. The refiners can be recomputed too, not only `layers`.
    """

    def forward(self, z: Tensor, time: Tensor, context: Tensor, lengths: tuple[int, ...]) -> Tensor:
        rope, shape = self.rope_embedder, (len(context), context.shape[1])
        rope.freqs_cis = [table.to(z.device, torch.complex64) for table in rope.freqs_cis]
        handle = rope.register_forward_pre_hook(lambda _, given: (given[0], HostMask(shape, lengths)))
        mask = (torch.arange(shape[1]) < torch.tensor(lengths)[:, None]).to(z.device, non_blocking=True)
        recomputing = self.gradient_checkpointing and torch.is_grad_enabled()
        for name in REFINERS if recomputing else ():
            # An attribute is found before the module of its name. `forward` only calls the blocks in it.
            vars(self)[name] = [partial(self._gradient_checkpointing_func, block) for block in self._modules[name]]
        try:
            return super().forward(z, time, context, mask, return_dict=False)[0]
        finally:
            handle.remove()
            for name in REFINERS:
                vars(self).pop(name, None)


class Lumina2(EvenFlowFamily):
    """Lumina2Pipeline: rectified flow, a Lumina2Transformer2DModel that predicts the velocity with the other sign."""

    layout = LAYOUT
    network_class = Lumina2Network
    pipeline_class = Lumina2Pipeline
    block_classes = ("Lumina2TransformerBlock",)
    text_encoder_class = Lumina2TextEncoder

    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        time = 1 - sigma * NUM_TRAIN_TIMESTEPS / NUM_TRAIN_TIMESTEPS  # rounded as the pipeline rounds it
        with self.autocast(z.device):
            return -network(z, time, text.context, text.lengths).float()

    def rescale(self, guided: Tensor, conditional: Tensor) -> Tensor:
        """Return each row [W] at the norm of the conditional one, as the pipeline's `cfg_normalization` does."""
        return guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))

    def feature_blocks(self, network: nn.Module) -> list[nn.Module]:
        return list(network.layers)

    def image_tokens(self, output: Tensor, z: Tensor, text: TextEmbedding) -> Tensor:
        """Return the tokens after each prompt's own."""
        count = z.shape[-2] * z.shape[-1] // PATCH**2
        return torch.stack([row[length : length + count] for row, length in zip(output, text.lengths, strict=True)])


FAMILY = Lumina2
