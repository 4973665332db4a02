"""The interface of a model family: the rest of the package uses these classes and never names a family."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from dpdmd.config.image_sizes import ImageSize
from dpdmd.config.precisions import Precisions
from dpdmd.models.layout import Layout
from dpdmd.models.loading import quieten_libraries
from dpdmd.models.lora import Adapter
from dpdmd.models.noise_schedule import Predictor, Schedule
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.tensor_files import Weights
from dpdmd.models.weight_files import Shape
from dpdmd.utils.device_transfer import to_device

UNQUANTIZED_MODEL = Precisions()


@dataclass(frozen=True)
class TextEmbedding:
    """Encoded prompts.

    Attributes:
        context: [B, L, D], for the attention.
        pooled: [B, P], for the modulation; None if the network takes none.
        lengths: the tokens of each prompt, as numbers on the host. The tokens of `context` after them are zeros, which
            only give the batch one length. None if all L tokens of every prompt count.
    """

    context: Tensor
    pooled: Tensor | None = None
    lengths: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.context)

    def rows(self, start: int, stop: int) -> "TextEmbedding":
        """Return the embeddings of prompts `start` to `stop` - 1, with no more tokens than the longest of them has."""
        lengths = self.lengths and self.lengths[start:stop]
        context = self.context[start:stop, : max(lengths) if lengths else None]
        return TextEmbedding(context, None if self.pooled is None else self.pooled[start:stop], lengths)

    def expand(self, batch_size: int) -> "TextEmbedding":
        """Return one embedding repeated for `batch_size` samples, without a copy."""
        pooled = None if self.pooled is None else self.pooled.expand(batch_size, -1)
        return TextEmbedding(
            self.context.expand(batch_size, -1, -1), pooled, self.lengths and self.lengths * batch_size
        )

    @staticmethod
    def concatenate(parts: "Sequence[TextEmbedding]") -> "TextEmbedding":
        """Return the embeddings of all prompts of all `parts`; shorter ones are filled to the longest with zeros."""
        longest = max(part.context.shape[1] for part in parts)
        filled = [
            part.context if (missing := longest - part.context.shape[1]) == 0 else pad(part.context, (0, 0, 0, missing))
            for part in parts
        ]
        pooled = None if parts[0].pooled is None else torch.cat([part.pooled for part in parts])
        lengths = None if parts[0].lengths is None else sum((part.lengths for part in parts), ())
        return TextEmbedding(torch.cat(filled), pooled, lengths)

    @staticmethod
    def of_lengths(contexts: Sequence[Tensor]) -> "TextEmbedding":
        """Return prompts of different lengths as one embedding; each context is [L of its own, D]."""
        return TextEmbedding.concatenate([TextEmbedding(each[None], None, (len(each),)) for each in contexts])

    def contexts(self) -> list[Tensor]:
        """Return each prompt's context [L of its own, D]."""
        lengths = self.lengths or (self.context.shape[1],) * len(self)
        return [row[:length] for row, length in zip(self.context, lengths, strict=True)]

    @cached_property
    def mask(self) -> Tensor | None:
        """Which tokens of `context` are a prompt's own, [B, L]; None if all are."""
        if self.lengths is None or min(self.lengths) == self.context.shape[1]:
            return None
        lengths = to_device(torch.tensor(self.lengths), self.context.device)
        return torch.arange(self.context.shape[1], device=self.context.device) < lengths[:, None]

    def map(self, function: Callable[[Tensor], Tensor]) -> "TextEmbedding":
        """Return the embedding with `function` applied to each of its tensors."""
        return TextEmbedding(
            function(self.context), None if self.pooled is None else function(self.pooled), self.lengths
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors on the device, by name."""
        named = {"context": self.context, "pooled": self.pooled}
        return {name: value for name, value in named.items() if value is not None}

    def to_cache(self) -> dict[str, Tensor]:
        """Return the embedding as tensors by name, each with one row for each prompt."""
        return self.tensors() | ({} if self.lengths is None else {"lengths": torch.tensor(self.lengths)})

    @staticmethod
    def from_cache(tensors: Mapping[str, Tensor]) -> "TextEmbedding":
        """Return the embedding of some rows of what `to_cache` returned; the tensors are on the CPU."""
        lengths = tuple(tensors["lengths"].tolist()) if "lengths" in tensors else None
        whole = TextEmbedding(tensors["context"], tensors.get("pooled"), lengths)
        return whole.rows(0, len(whole))


class TextEncoder(ABC):
    """The text encoders of one model, frozen."""

    @abstractmethod
    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Encode `prompts` without gradient; the layout's `null_prompt` gives the unconditional one."""


class ImageDecoder(ABC):
    """The decoder of one model, frozen; `vae` is its network."""

    vae: nn.Module

    @abstractmethod
    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, h, w) of the latents of a `height` x `width` image."""

    @abstractmethod
    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images [B, 3, H, W], fp32; black is 0, white is 1, no value is clamped."""

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images [B, 3, H, W], fp32 in [0, 1], without gradient."""
        return self.decode_with_gradient(latents).clamp(0, 1)


class Family(ABC):
    """One kind of generator: loading, prediction and export.

    Networks take and return fp32 tensors; `compute_dtype` is the type of the computations inside.

    Attributes:
        layout: the folder layout.
        block_classes: classes of the blocks that are compiled and sharded one by one.
        precisions: how the network and the text encoders that are loaded are quantised.
    """

    layout: Layout
    block_classes: tuple[str, ...]

    def __init__(self, device: torch.device, compute_dtype: torch.dtype, precisions: Precisions = UNQUANTIZED_MODEL):
        self.device = device
        self.compute_dtype = compute_dtype
        self.precisions = precisions
        quieten_libraries()

    @abstractmethod
    def load_network(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        """Load the generator network of a pipeline folder, strictly, in evaluation mode, with weights in `dtype`.

        If `precisions.base` asks for it, the linear layers of its blocks are quantised, and all weights on the device.
        """

    @abstractmethod
    def load_text_encoder(self, folder: Path, max_sequence_length: int, *, no_t5: bool = False) -> TextEncoder:
        """Load the text encoders of a pipeline folder; `no_t5` leaves out the T5 if the layout allows it."""

    @abstractmethod
    def load_image_decoder(self, folder: Path) -> ImageDecoder:
        """Load the decoder of a pipeline folder."""

    @abstractmethod
    def load_schedule(self, folder: Path) -> Schedule:
        """Read the noise schedule of a pipeline folder."""

    @abstractmethod
    def library_sigmas(self, folder: Path, steps: int | None = None, size: ImageSize | None = None) -> Tensor:
        """Return the grid [N + 1] of the library's scheduler of a pipeline folder.

        `size` is that of the images; None for the folder's own. Most grids do not depend on it.

        With `steps` it is that of the model's own scheduler. Without, it is that of the scheduler in the folder, called
        as a user of an exported student calls it, with the `sigmas_argument` or the steps in dpdmd.json.
        """

    @abstractmethod
    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        """Call the network once: z [B, C, H, W] and sigma [B], fp32 -> the prediction [B, C, H, W], fp32."""

    @abstractmethod
    def export(
        self,
        folder: Path,
        weights: Weights,
        source: Path,
        defaults: SamplingDefaults,
        *,
        copy: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write a complete pipeline folder: the network from `weights`, all else from `source`, and `defaults`.

        If `copy` is false, the unchanged components are symbolic links to `source`. `dtype` as in `export_pipeline`.
        """

    @abstractmethod
    def export_single_file(
        self,
        path: Path,
        weights: Weights,
        source: Path,
        defaults: SamplingDefaults,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write all weights to one file in the original layout, and a pipeline folder without weights around it.

        `dtype` as in `export_pipeline`.

        Raises:
            ValueError: the original layout has no place for a part.
        """

    @abstractmethod
    def export_lora(
        self, folder: Path, state: dict[str, Tensor], adapter: Adapter, source: Path, defaults: SamplingDefaults
    ) -> None:
        """Write a LoRA of `source`'s network that diffusers and ComfyUI load, the scheduler, and `defaults`.

        `state` has the adapter's weights under the names of their layers (`lora.AdapterView.state_dict`).
        """

    @abstractmethod
    def read_lora(self, folder: Path) -> dict[str, Tensor]:
        """Return the weights that `export_lora` wrote, with alpha / rank in them, under the names of their layers."""

    @abstractmethod
    def check_lora(self, folder: Path, expected: Mapping[str, Shape]) -> None:
        """Check that a LoRA file in diffusers' layout is whole and fits a network with weights of these shapes.

        Raises:
            ValueError: the LoRA does not fit.
        """

    @abstractmethod
    def load_lora(self, network: nn.Module, folder: Path) -> None:
        """Put a LoRA file in diffusers' layout beside the network's layers. Call `check_lora` before.

        Raises:
            ValueError: peft cannot use the LoRA.
        """

    @abstractmethod
    def merge_lora(self, weights: Weights, folder: Path) -> Weights:
        """Return the network's weights with a LoRA file in diffusers' layout added. Call `check_lora` before.

        Raises:
            ValueError: the LoRA is of another kind than B A alpha / rank.
        """

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """Return the network's transformer blocks, in the order of the layout."""
        lists = self.layout.blocks(network.config)
        return [block for prefix in lists for block in network.get_submodule(prefix.removesuffix("."))]

    def feature_blocks(self, network: nn.Module) -> list[nn.Module]:
        """Return the blocks, in order, whose output can serve as features, since it has tokens of the image."""
        return self.blocks(network)

    def image_tokens(self, output: Tensor | tuple[Tensor, ...], z: Tensor, text: TextEmbedding) -> Tensor:
        """Return the image's tokens [B, T, D] in the output of a block in a call at `z` with these prompts.

        If a block returns several streams, the image's is the last one.
        """
        return output[-1] if isinstance(output, tuple) else output

    def features(
        self, network: nn.Module, blocks: Sequence[nn.Module], z: Tensor, sigma: Tensor, text: TextEmbedding
    ) -> list[Tensor]:
        """Return the outputs of some `blocks` of the network at `z`, each [B, T, D] fp32: the image's tokens."""
        outputs: dict[nn.Module, Tensor] = {}

        def keep(block: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[block] = self.image_tokens(output, z, text)

        handles = [block.register_forward_hook(keep) for block in blocks]
        try:
            self.predict(network, z, sigma, text)
        finally:
            for handle in handles:
                handle.remove()
        return [outputs[block].float() for block in blocks]

    def bind(self, network: nn.Module, text: TextEmbedding) -> Predictor:
        """Return the network as a function of (z, sigma) for these prompts, conditional only."""
        return lambda z, sigma: self.predict(network, z, sigma, text)

    def guide(self, unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
        """Return the guided prediction, all [B, C, H, W], by the formula in the layout."""
        return self.rescale(guide(unconditional, conditional, scale), conditional)

    def rescale(self, guided: Tensor, conditional: Tensor) -> Tensor:
        """Return the guided prediction at the length that the family gives it by the conditional one; here its own."""
        return guided

    def bind_guided(self, network: nn.Module, text: TextEmbedding, null: TextEmbedding, scale: float) -> Predictor:
        """Return the network under classifier-free guidance: both branches in one call, unconditional rows first.

        `null` is the embedding of the unconditional prompt, one row. At the scale that switches guidance off, only the
        conditional branch is called.
        """
        if scale == self.layout.guidance.off:
            return self.bind(network, text)
        both = TextEmbedding.concatenate([null.expand(len(text)), text])

        def predict(z: Tensor, sigma: Tensor) -> Tensor:
            unconditional, conditional = self.predict(
                network, torch.cat([z, z]), torch.cat([sigma, sigma]), both
            ).chunk(2)
            return self.guide(unconditional, conditional, scale)

        return predict


def guide(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance: u + s (c - u)."""
    return unconditional + scale * (conditional - unconditional)
