"""LoRA files: in diffusers' layout, and under the names that ComfyUI reads. Imports neither diffusers nor peft."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpdmd.models.loading import raise_as_value_error
from dpdmd.models.lora import Adapter
from dpdmd.models.tensor_files import LazyTensor, Weights
from dpdmd.models.weight_files import Shape, read_shapes_of_weights
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.paths import LORA_WEIGHTS

COMFYUI_WEIGHTS = "comfyui_lora.safetensors"
_A, _B = ".lora_A.weight", ".lora_B.weight"


def save_lora(
    folder: Path,
    state: dict[str, Tensor],
    adapter: Adapter,
    component: str,
    comfyui_name: Callable[[str], str] | None = None,
) -> None:
    """Write an adapter's weights for diffusers, and once more for ComfyUI if ComfyUI does not read the same names.

    alpha / rank is multiplied into the weights, so alpha equals the rank: loaders assume that without metadata. The
    bytes depend on nothing but the weights. safetensors writes metadata of several entries in a random order.

    Args:
        state: the weights under the names of their layers.
        component: the network that the adapter changes.
        comfyui_name: converts diffusers' name of a weight or alpha to ComfyUI's; None if they are the same.
    """
    scale = adapter.alpha / adapter.rank
    named = {
        f"{component}.{name}": (value * scale if name.endswith(_B) and scale != 1 else value).contiguous()
        for name, value in state.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(named, folder / LORA_WEIGHTS, metadata={"format": "pt"})
    if comfyui_name:
        layers = (name.removesuffix(_B) for name in named if name.endswith(_B))
        named |= {f"{layer}.alpha": torch.tensor(float(adapter.rank)) for layer in layers}
        save_file({comfyui_name(name): value for name, value in named.items()}, folder / COMFYUI_WEIGHTS)


def read_lora(folder: Path, component: str) -> dict[str, Tensor]:
    """Return an adapter's weights from a file in diffusers' layout, under the names of the component's layers."""
    return {name.removeprefix(f"{component}."): value for name, value in load_file(folder / LORA_WEIGHTS).items()}


def check_lora(expected: Mapping[str, Shape], folder: Path, pipeline: Any, component: str) -> None:
    """Check that a LoRA in diffusers' layout fits a network, before anything else loads.

    diffusers ignores weights of other components, and peft leaves zeros in place of a missing half.

    Args:
        expected: shapes of the network's weights.
        pipeline: diffusers' class of the pipeline.
        component: the name of the network in the pipeline.

    Raises:
        ValueError: the file holds no tensor, weights of something else or numbers that are not read, or a layer is
            missing, of another size, or lacks one of its two matrices.
    """
    path, start = folder / LORA_WEIGHTS, f"{component}."
    if not read_shapes_of_weights(path):
        raise ValueError(f"{path} holds no tensor: save the LoRA again")
    state, _ = _read_file(folder, pipeline)
    shapes = {name.removeprefix(start): tuple(value.shape) for name, value in state.items()}
    for name in state:
        if not name.startswith(start):
            raise ValueError(
                f"{path} holds {name}, but all names of this network's LoRA begin with '{start}': rename or remove it"
            )
    for layer in dict.fromkeys(name.partition(".lora_")[0] for name in shapes):
        if f"{layer}.weight" not in expected:
            raise ValueError(f"{path} changes {layer}, which the network does not have")
        for half in (_A, _B):
            if layer + half not in shapes:
                raise ValueError(f"{path} lacks {start}{layer}{half}: save the LoRA again")
        if misfit := _misfit(shapes[layer + _A], shapes[layer + _B], expected[f"{layer}.weight"]):
            raise ValueError(f"{path} does not fit the network ({layer} {misfit})")


def _misfit(a: Shape, b: Shape, weight: Shape) -> str:
    """Return why A [rank, inputs, ...] and B [outputs, rank, ...] are no change of a layer's weight; "" if they are."""
    if not len(a) == len(b) == len(weight) >= 2:
        return f"has a weight of {len(weight)} dimensions, and it {len(a)} and {len(b)}"
    for side, found, wanted in (("inputs", a[1], weight[1]), ("outputs", b[0], weight[0])):
        if found != wanted:
            return f"has {wanted} {side}, and it {found}"
    return "" if a[0] == b[1] else f"has lora_A of rank {a[0]} and lora_B of rank {b[1]}"


def merge_lora(weights: Weights, folder: Path, pipeline: Any, component: str) -> dict[str, LazyTensor]:
    """Return a network's weights with B A alpha / rank of a LoRA in diffusers' layout added to its layers, in fp32.

    Call `check_lora` before.

    Raises:
        ValueError: the LoRA holds more than two matrices a layer.
    """
    state, settings = _read_any_lora(folder, pipeline, component)
    merged = dict(weights)
    for name in state:
        layer, _, half = name.partition(".lora_")
        if half not in ("A.weight", "B.weight") or settings.get("use_dora"):
            raise ValueError(f"{folder / LORA_WEIGHTS} holds {name}, which cannot be merged")
        if half == "A.weight":
            changed = f"{layer}.weight"
            merged[changed] = _changed(changed, weights[changed], *_halves(state, settings, layer))
    return merged


def _halves(state: dict[str, Tensor], settings: dict[str, Any], layer: str) -> tuple[Tensor, Tensor, float]:
    """Return A, B and alpha / rank of a layer."""
    a, b = state[layer + _A], state[layer + _B]
    rank = a.shape[0]
    alpha = settings.get("alpha_pattern", {}).get(layer, settings.get("lora_alpha", rank))
    return a, b, alpha / (rank**0.5 if settings.get("use_rslora") else rank)


def _changed(name: str, weight: LazyTensor, a: Tensor, b: Tensor, scale: float) -> LazyTensor:
    def add(value: Tensor) -> Tensor:
        changed = value + (b.float().flatten(1) @ a.float().flatten(1)).reshape(value.shape) * scale
        if not changed.isfinite().all():
            raise ValueError(f"{name} with the LoRA added is not finite: the LoRA or its base is broken")
        return changed

    return weight.to(torch.float32).map(add)


def _read_file(folder: Path, pipeline: Any) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return a LoRA's weights and the file's metadata, by diffusers' names.

    Raises:
        ValueError: diffusers cannot read the file, or it holds alphas in tensors of their own, as kohya's layout does.
    """
    path = folder / LORA_WEIGHTS
    with raise_as_value_error(f"diffusers cannot read {path}"):
        state, *alphas, metadata = pipeline.lora_state_dict(
            folder, weight_name=path.name, return_lora_metadata=True, local_files_only=True, use_safetensors=True
        )
    if any(alphas):
        raise ValueError(f"{path} is in kohya's layout: save the LoRA in diffusers' layout")
    return state, metadata


def _read_any_lora(folder: Path, pipeline: Any, component: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a LoRA's weights by the names of their layers, and the settings in the file's metadata."""
    state, metadata = _read_file(folder, pipeline)
    start = f"{component}."
    settings = {name.removeprefix(start): value for name, value in (metadata or {}).items() if name.startswith(start)}
    return {name.removeprefix(start): value for name, value in state.items()}, settings


def load_lora(network: nn.Module, folder: Path, pipeline: Any, component: str) -> None:
    """Put a LoRA in diffusers' layout beside the layers of the network. Call `check_lora` before.

    Raises:
        ValueError: peft cannot use the LoRA.
    """
    state, metadata = _read_file(folder, pipeline)
    try:
        network.load_lora_adapter(state, prefix=component, metadata=metadata)
    except RuntimeError as error:
        raise ValueError(f"{folder / LORA_WEIGHTS} does not fit the network ({shorten_error(error)})") from None
