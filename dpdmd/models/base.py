"""The interface of a model family: the rest of the package uses these classes and never names a family."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpdmd.models import lora_files
from dpdmd.models.comfyui_workflow import build_workflow, write_workflow
from dpdmd.models.layout import Layout
from dpdmd.models.loading import quieten_libraries
from dpdmd.models.lora import Adapter
from dpdmd.models.noise_schedule import Predictor, Schedule
from dpdmd.models.pipeline_export import export_pipeline, export_settings
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.tensor_files import LazyTensor, Weights, open_weights, write_tensors
from dpdmd.models.weight_files import stem_of


@dataclass(frozen=True)
class TextEmbedding:
    """Encoded prompts: `context` [B, L, D] for the attention, `pooled` [B, P] for the modulation."""

    context: Tensor
    pooled: Tensor

    def __len__(self) -> int:
        return len(self.pooled)

    def rows(self, start: int, stop: int) -> "TextEmbedding":
        """Return the embeddings of prompts `start` to `stop` - 1."""
        return TextEmbedding(self.context[start:stop], self.pooled[start:stop])

    def expand(self, batch_size: int) -> "TextEmbedding":
        """Return one embedding repeated for `batch_size` samples, without a copy."""
        return TextEmbedding(self.context.expand(batch_size, -1, -1), self.pooled.expand(batch_size, -1))


class TextEncoder(ABC):
    """The text encoders of one model, frozen."""

    @abstractmethod
    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Encode `prompts` without gradient; the empty prompt gives the unconditional embedding of guidance."""


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

    Networks take and return fp32 tensors; `compute_dtype` is the type of the computations inside. `pipeline` is the
    library's class of the pipeline.
    """

    layout: Layout
    pipeline: Any
    block_classes: tuple[str, ...]

    def __init__(self, device: torch.device, compute_dtype: torch.dtype):
        self.device = device
        self.compute_dtype = compute_dtype
        quieten_libraries()

    @abstractmethod
    def load_network(self, folder: Path, dtype: torch.dtype) -> nn.Module:
        """Load the generator network of a pipeline folder, strictly, in evaluation mode, with weights in `dtype`."""

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
    def library_sigmas(self, folder: Path, steps: int | None = None) -> Tensor:
        """Return the grid [N + 1] of the library's scheduler of a pipeline folder.

        With `steps` it is that of the model's own scheduler. Without, it is that of the scheduler in the folder, called
        as a user of an exported student calls it, with the `sigmas_argument` or the steps in dpdmd.json.
        """

    @abstractmethod
    def predict(self, network: nn.Module, z: Tensor, sigma: Tensor, text: TextEmbedding) -> Tensor:
        """Call the network once: z [B, C, H, W] and sigma [B], fp32 -> the prediction [B, C, H, W], fp32."""

    @abstractmethod
    def export_scheduler(self, folder: Path, source: Path, defaults: SamplingDefaults) -> SamplingDefaults:
        """Write scheduler/ of an exported student, that makes its grid from the number of steps if it can.

        Returns:
            `defaults` with what the scheduler needs (`SamplingDefaults.on_grid`).
        """

    @abstractmethod
    def original_layout(self, parts: Mapping[str, Weights], source: Path) -> dict[str, LazyTensor]:
        """Return the weights of all components under the names of the family's original checkpoints.

        Args:
            parts: weights of each component under the library's names.
            source: pipeline folder with the configurations.

        Raises:
            ValueError: the original layout has no place for a part.
        """

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
        export_pipeline(self.layout, folder, weights, source, no_t5=defaults.no_t5, copy=copy, dtype=dtype)
        self.export_scheduler(folder, source, defaults).write(folder)

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
        layout = self.layout
        export_settings(layout, path.parent, source, no_t5=defaults.no_t5)
        parts = {
            name: open_weights(source / name, stem_of(name, layout.network))
            for name in layout.components(source, no_t5=defaults.no_t5)
            if name in layout.classes and name != layout.network
        }
        parts[layout.network] = {name: value.to(torch.float32) for name, value in weights.items()}
        tensors = self.original_layout(parts, source)
        write_tensors(path, {name: value.to(dtype) if dtype else value for name, value in tensors.items()})
        self.export_scheduler(path.parent, source, defaults).write(path.parent)
        self._write_workflow(path.parent, source, defaults, checkpoint=path.name)

    def export_lora(
        self, folder: Path, state: dict[str, Tensor], adapter: Adapter, source: Path, defaults: SamplingDefaults
    ) -> None:
        """Write a LoRA of `source`'s network that diffusers and ComfyUI load, the scheduler, and `defaults`.

        `state` has the adapter's weights under the names of their layers (`lora.AdapterView.state_dict`).
        """
        lora_files.save_lora(folder, state, adapter, self.layout.network, self.layout.comfyui_name)
        self.export_scheduler(folder, source, defaults).with_base(source, folder).write(folder)
        read_by_comfyui = lora_files.COMFYUI_WEIGHTS if self.layout.comfyui_name else lora_files.LORA_WEIGHTS
        self._write_workflow(folder, source, defaults, lora=read_by_comfyui)

    def _write_workflow(self, folder: Path, source: Path, defaults: SamplingDefaults, **files: str) -> None:
        """Write a ComfyUI workflow beside an export, if the family has one. `files` as in `build_workflow`."""
        if names := self.layout.comfyui:
            sigmas = defaults.sigmas or self.load_schedule(source).named_sigmas(defaults.grid, defaults.steps).tolist()
            side = self.layout.default_size(source)
            size = defaults.height or side, defaults.width or side
            write_workflow(folder, build_workflow(names, defaults, sigmas, size, **files))

    def read_lora(self, folder: Path) -> dict[str, Tensor]:
        """Return the weights that `export_lora` wrote, with alpha / rank in them, under the names of their layers."""
        return lora_files.read_lora(folder, self.layout.network)

    def load_lora(self, network: nn.Module, folder: Path) -> None:
        """Put a LoRA file in diffusers' layout beside the network's layers; strict.

        Raises:
            ValueError: the LoRA does not fit.
        """
        lora_files.load_lora(network, folder, self.pipeline, self.layout.network)

    def merge_lora(self, weights: Weights, folder: Path) -> Weights:
        """Return the network's weights with a LoRA file in diffusers' layout added to them; strict.

        Raises:
            ValueError: the LoRA does not fit, or is of another kind than B A alpha / rank.
        """
        return lora_files.merge_lora(weights, folder, self.pipeline, self.layout.network)

    def feature_blocks(self, network: nn.Module) -> list[nn.Module]:
        """Return the network's transformer blocks in order; the output of each can serve as features."""
        return [module for module in network.modules() if type(module).__name__ == self.block_classes[0]]

    def features(
        self, network: nn.Module, blocks: Sequence[nn.Module], z: Tensor, sigma: Tensor, text: TextEmbedding
    ) -> list[Tensor]:
        """Return the outputs of some `blocks` of the network at `z`, each [B, T, D] fp32: the image's tokens.

        If a block returns several streams, the image's is the last one.
        """
        outputs: dict[nn.Module, Tensor] = {}

        def keep(block: nn.Module, _: object, output: Tensor | tuple[Tensor, ...]) -> None:
            outputs[block] = output[-1] if isinstance(output, tuple) else output

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

    def bind_guided(self, network: nn.Module, text: TextEmbedding, null: TextEmbedding, scale: float) -> Predictor:
        """Return the network under classifier-free guidance: both branches in one call, unconditional rows first.

        `null` is the embedding of the empty prompt, one row. At scale 1 guidance equals the conditional prediction,
        so only that branch is called.
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
