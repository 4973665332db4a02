"""LoRA files: in diffusers' layout, and under the names that ComfyUI reads. Imports neither diffusers nor peft."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpdmd.models.lora import Adapter, peft_config
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.paths import LORA_WEIGHTS

COMFYUI_WEIGHTS = "comfyui_lora.safetensors"


def save_lora(
    folder: Path,
    state: dict[str, Tensor],
    adapter: Adapter,
    pipeline: Any,
    component: str,
    comfyui_name: Callable[[str], str] = str,
) -> None:
    """Write an adapter's weights for diffusers, and once more for ComfyUI.

    Args:
        state: the weights under the names of their layers.
        pipeline: diffusers' class of the pipeline.
        component: the network that the adapter changes.
        comfyui_name: converts diffusers' name of a weight to ComfyUI's, if the two differ.
    """
    state = {name: value.contiguous() for name, value in state.items()}
    metadata = peft_config(adapter).to_dict()
    pipeline.save_lora_weights(
        folder, **{f"{component}_lora_layers": state, f"{component}_lora_adapter_metadata": metadata}
    )
    named = _with_alphas(state, adapter.alpha, component)
    save_file({comfyui_name(name): value for name, value in named.items()}, folder / COMFYUI_WEIGHTS)


def _with_alphas(state: dict[str, Tensor], alpha: float, component: str) -> dict[str, Tensor]:
    """Return the weights under diffusers' names with alpha as a tensor beside each pair.

    ComfyUI does not read the file's metadata, and without such tensors takes alpha for the rank.
    """
    named = {f"{component}.{path}": value for path, value in state.items()}
    layers = {path.removesuffix(".lora_A.weight") for path in named if path.endswith(".lora_A.weight")}
    return named | {f"{layer}.alpha": torch.tensor(float(alpha)) for layer in sorted(layers)}


def read_lora(folder: Path, component: str) -> dict[str, Tensor]:
    """Return an adapter's weights from a file in diffusers' layout, under the names of the component's layers."""
    return {name.removeprefix(f"{component}."): value for name, value in load_file(folder / LORA_WEIGHTS).items()}


def load_lora(network: nn.Module, folder: Path, pipeline: Any, component: str) -> None:
    """Put a LoRA in diffusers' layout beside the layers of the network; strict.

    Args:
        pipeline: diffusers' class of the pipeline.
        component: the name of the network in the pipeline.

    Raises:
        ValueError: the LoRA changes a layer that the network does not have, or a layer of another size.
    """
    state, *_, metadata = pipeline.lora_state_dict(
        folder, weight_name=LORA_WEIGHTS, return_lora_metadata=True, local_files_only=True, use_safetensors=True
    )
    layers = dict(network.named_modules())
    for name in state:
        layer = name.removeprefix(f"{component}.").partition(".lora_")[0]
        if layer not in layers:  # diffusers only warns
            raise ValueError(f"{folder / LORA_WEIGHTS} changes {layer}, which the network does not have")
    try:
        network.load_lora_adapter(state, prefix=component, metadata=metadata)
    except RuntimeError as error:
        raise ValueError(f"{folder / LORA_WEIGHTS} does not fit the network ({shorten_error(error)})") from None
