"""What families share: strict loading, the AutoencoderKL's decoder, writing a pipeline folder."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, ModelMixin
from safetensors.torch import load_file
from torch import Tensor, nn

from dpdmd.models.base import ImageDecoder
from dpdmd.models.layout import LORA_WEIGHTS, Layout
from dpdmd.models.loading import load_part
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.text_files import read_json


def quieten_libraries() -> None:
    """Long prompts are common and cut on purpose; a line for each, and a bar for each part, hide what matters."""
    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()


def load_encoders(layout: Layout, folder: Path, dtype: torch.dtype, *, no_t5: bool = False) -> dict[str, nn.Module]:
    """The text encoders of a pipeline folder by component, to hand to the pipeline, which would load them leniently."""
    parts = layout.text_parts(folder, no_t5=no_t5)
    return {part: load_part(getattr(transformers, layout.classes[part]), folder / part, dtype) for part in parts}


class KLImageDecoder(ImageDecoder):
    """The decoder half of the AutoencoderKL."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        self.vae = load_part(AutoencoderKL, folder / "vae", dtype)
        self.vae.requires_grad_(False).to(device)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.vae.config.latent_channels, height // self.factor, width // self.factor

    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        raw = latents.to(self.vae.device) / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)
        return self.vae.decode(raw.to(self.vae.dtype)).sample.float() / 2 + 0.5


def export_parts(folder: Path, source: Path, parts: Sequence[str], *, without: Sequence[str] = (), copy: bool) -> None:
    """Begin a pipeline folder with model_index.json, in which the components `without` are null, and those parts of
    `source` that stay as they are."""
    source = source.resolve()
    folder.mkdir(parents=True)
    for part in parts:
        if copy:
            shutil.copytree(source / part, folder / part)
        else:
            (folder / part).symlink_to(source / part)
    index = read_json(source / "model_index.json") | {part: [None, None] for part in without}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def export_network(kind: type[ModelMixin], folder: Path, state: dict[str, Tensor], source: Path) -> None:
    """One component with the configuration of `source` and the weights of `state`."""
    network = kind.from_config(kind.load_config(source))
    network.load_state_dict(state, strict=True, assign=True)
    network.save_pretrained(folder)


def read_lora(folder: Path, part: str) -> dict[str, Tensor]:
    """The adapter's weights of a file in diffusers' layout, under their layers' names in the component `part`."""
    return {name.removeprefix(f"{part}."): value for name, value in load_file(folder / LORA_WEIGHTS).items()}


def attach_lora(
    network: nn.Module, part: str, folder: Path, state: dict[str, Tensor], metadata: dict[str, Any] | None
) -> None:
    """Put the LoRA of `folder`, as diffusers' `lora_state_dict` reads it, beside the network's layers.

    Raises:
        ValueError: it changes a layer that the network has not, or one of another size.
    """
    layers = dict(network.named_modules())
    for name in state:
        layer = name.removeprefix(f"{part}.").partition(".lora_")[0]
        if layer not in layers:  # diffusers only warns
            raise ValueError(f"{folder / LORA_WEIGHTS} changes {layer}, which the network has not")
    try:
        network.load_lora_adapter(state, prefix=part, metadata=metadata)
    except RuntimeError as error:
        raise ValueError(f"{folder / LORA_WEIGHTS} does not fit the network ({shorten_error(error)})") from None
