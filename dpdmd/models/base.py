"""What a model family offers: the rest of the package asks for these and never names a family."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dpdmd.models.lora_config import Adapter
from dpdmd.models.noise_schedule import Predictor, Schedule
from dpdmd.models.sampling_defaults import SamplingDefaults


@dataclass(frozen=True)
class TextEmbedding:
    """Encoded prompts: `context` [B, L, D] for the attention, `pooled` [B, P] for the modulation."""

    context: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.pooled)

    def rows(self, start: int, stop: int) -> "TextEmbedding":
        """Those of prompts `start` to `stop` - 1."""
        return TextEmbedding(self.context[start:stop], self.pooled[start:stop])

    def expand(self, batch_size: int) -> "TextEmbedding":
        """One embedding shown to `batch_size` samples, without a copy."""
        return TextEmbedding(self.context.expand(batch_size, -1, -1), self.pooled.expand(batch_size, -1))


class TextEncoder(ABC):
    """The text encoders of one model, frozen."""

    @abstractmethod
    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embeddings of `prompts`, no gradient; of the empty prompt what guidance takes as unconditional."""


class ImageDecoder(ABC):
    """The decoder of one model, frozen; `vae` is its network."""

    vae: nn.Module

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a `height` x `width` image."""

    @abstractmethod
    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W], fp32, of latents [B, C, h, w]; black is 0, white 1, and values beyond are kept."""

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, H, W], fp32 in [0, 1], of latents [B, C, h, w]; no gradient."""
        return self.decode_with_gradient(latents).clamp(0, 1)


class OffloadedDecoder(ImageDecoder):
    """A decoder that waits on the CPU between uses and decodes one image at a time: less memory, more copies.

    For images without gradient: a backward pass would find its weights gone.
    """

    def __init__(self, decoder: ImageDecoder, device: torch.device):
        self.decoder, self.vae, self.device = decoder, decoder.vae, device
        self.vae.to("cpu")

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.decoder.latent_shape(height, width)

    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        self.vae.to(self.device)
        try:
            return torch.cat([self.decoder.decode_with_gradient(latent) for latent in latents.split(1)])
        finally:
            self.vae.to("cpu")


class Family(ABC):
    """One kind of generator: loading, prediction and export.

    Networks are called in fp32 tensors and answer in fp32; `compute_dtype` is what they use inside.
    """

    block_classes: tuple[str, ...]

    def __init__(self, device: torch.device, compute_dtype: torch.dtype):
        self.device = device
        self.compute_dtype = compute_dtype

    @abstractmethod
    def load_network(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        """The generator network of a pipeline folder, strict, in evaluation mode, weights in `dtype`."""

    @abstractmethod
    def load_text_encoder(self, folder: Path, max_sequence_length: int, *, no_t5: bool = False) -> TextEncoder:
        """The text encoders of a pipeline folder; `no_t5` leaves the T5 out, where the layout says that it can be."""

    @abstractmethod
    def load_image_decoder(self, folder: Path) -> ImageDecoder: ...

    @abstractmethod
    def load_schedule(self, folder: Path) -> Schedule: ...

    @abstractmethod
    def library_sigmas(self, folder: Path, steps: int, sigmas: tuple[float, ...] | None = None) -> Tensor:
        """The grid [N + 1] that the library's own scheduler of a pipeline folder steps through.

        With `sigmas` (final 0 included) those are given to it, as a user would; else `steps` alone.
        """

    @abstractmethod
    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        """One network call: z [B, C, H, W] and sigma [B] fp32 in, the prediction [B, C, H, W] fp32 out."""

    @abstractmethod
    def export(
        self, folder: Path, network_state: dict[str, Tensor], source: Path, defaults: SamplingDefaults, *, copy: bool
    ) -> None:
        """Write a complete pipeline folder: the network from `network_state`, all else from `source`, and `defaults`.

        With `copy` false the unchanged parts are symbolic links to `source`.
        """

    @abstractmethod
    def export_lora(
        self, folder: Path, state: dict[str, Tensor], adapter: Adapter, source: Path, defaults: SamplingDefaults
    ) -> None:
        """Write a LoRA of `source`'s network that diffusers loads, its twin for ComfyUI, the scheduler, and `defaults`.

        `state` has the adapter's weights under their layers' names (`lora.Role.state_dict`).
        """

    @abstractmethod
    def read_lora(self, folder: Path) -> dict[str, Tensor]:
        """The `state` that `export_lora` wrote."""

    @abstractmethod
    def load_lora(self, network: nn.Module, folder: Path) -> None:
        """Put a LoRA file in diffusers' layout beside the network's layers; strict.

        Raises:
            ValueError: it does not fit.
        """

    def feature_blocks(self, network: nn.Module) -> list[nn.Module]:
        """The network's transformer blocks in order: each offers its output as features."""
        return [module for module in network.modules() if type(module).__name__ == self.block_classes[0]]

    def features(
        self, network: nn.Module, blocks: Sequence[nn.Module], z: Tensor, sigma: Tensor, text: TextEmbedding
    ) -> list[Tensor]:
        """What some `blocks` of the network say of `z`, each [B, T, D] fp32: tokens of the image.

        Of several streams that a block returns the image's is the last.
        """
        found: dict[nn.Module, Tensor] = {}

        def keep(block: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
            found[block] = output[-1] if isinstance(output, tuple) else output

        handles = [block.register_forward_hook(keep) for block in blocks]
        try:
            self.predict(network, z, sigma, text)
        finally:
            for handle in handles:
                handle.remove()
        return [found[block].float() for block in blocks]

    def bind(self, network: nn.Module, text: TextEmbedding) -> Predictor:
        """The network with its prompts bound, conditional only."""
        return lambda z, sigma: self.predict(network, z, sigma, text)

    def bind_guided(self, network: nn.Module, text: TextEmbedding, null: TextEmbedding, scale: float) -> Predictor:
        """The network under classifier-free guidance: both branches in one call, the unconditional rows first.

        `null` is the embedding of the empty prompt, one row. At scale 1 guidance is the conditional prediction
        and costs one branch.
        """
        if scale == 1:
            return self.bind(network, text)
        empty = null.expand(len(text))
        both = TextEmbedding(torch.cat([empty.context, text.context]), torch.cat([empty.pooled, text.pooled]))

        def predict(z: Tensor, sigma: Tensor) -> Tensor:
            unconditional, conditional = self.predict(
                network, torch.cat([z, z]), torch.cat([sigma, sigma]), both
            ).chunk(2)
            return guide(unconditional, conditional, scale)

        return predict


def guide(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: u + s (c - u)."""
    return unconditional + scale * (conditional - unconditional)
