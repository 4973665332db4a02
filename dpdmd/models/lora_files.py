"""LoRA files: in diffusers' layout, and under the names that ComfyUI reads. diffusers and peft load with a file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpdmd.models.loading import raise_as_value_error
from dpdmd.models.lora import Adapter
from dpdmd.models.tensor_files import LazyTensor, Weights
from dpdmd.models.weight_files import Shape, read_shapes_of_weights
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.paths import LORA_WEIGHTS

if TYPE_CHECKING:
    from peft import LoraConfig

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

    Raises:
        OSError: a file cannot be written.
    """
    scale = adapter.alpha / adapter.rank
    named = {
        f"{component}.{name}": (value * scale if name.endswith(_B) and scale != 1 else value).contiguous()
        for name, value in state.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    _save(named, folder / LORA_WEIGHTS, {"format": "pt"})
    if comfyui_name:
        layers = (name.removesuffix(_B) for name in named if name.endswith(_B))
        named |= {f"{layer}.alpha": torch.tensor(float(adapter.rank)) for layer in layers}
        _save({comfyui_name(name): value for name, value in named.items()}, folder / COMFYUI_WEIGHTS)


def _save(named: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    try:
        save_file(named, path, metadata)
    except SafetensorError as error:  # which is no OSError, also if the disk is full
        raise OSError(f"{path}: cannot be written ({shorten_error(error)})") from None


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
        ValueError: the file holds no tensor, weights of something else or numbers that are not read, a layer is
            missing, of another size, or lacks one of its two matrices, or peft cannot use the metadata.
    """
    path, start = folder / LORA_WEIGHTS, f"{component}."
    stored = read_shapes_of_weights(path)
    if not stored:
        raise ValueError(f"{path} holds no tensor: save the LoRA again")
    if magnitudes := next((name for name in stored if "dora_scale" in name), None):
        raise ValueError(f"{path} holds {magnitudes}, part of a DoRA that diffusers leaves out: give a plain LoRA")
    state, metadata = _read_file(folder, pipeline)
    shapes = {name.removeprefix(start): tuple(value.shape) for name, value in state.items()}
    for name in state:
        if not name.startswith(start):
            raise ValueError(
                f"{path} holds {name}, but all names of this network's LoRA begin with '{start}': rename or remove it"
            )
    layers = list(dict.fromkeys(name.partition(".lora_")[0] for name in shapes))
    for layer in layers:
        if layer.endswith(".alpha"):
            raise ValueError(f"{path} holds {start}{layer}, which diffusers does not read: multiply B by alpha / rank")
        if f"{layer}.weight" not in expected:
            raise ValueError(f"{path} changes {layer}, which the network does not have")
        for half in (_A, _B):
            if layer + half not in shapes:
                raise ValueError(f"{path} lacks {start}{layer}{half}: save the LoRA again")
        if misfit := _misfit(shapes[layer + _A], shapes[layer + _B], expected[f"{layer}.weight"]):
            raise ValueError(f"{path} does not fit the network ({layer} {misfit})")
    config = _config(path, shapes, metadata, start)
    for layer in layers:
        _scale(path, config, layer, shapes[layer + _A][0])


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
    path, start = folder / LORA_WEIGHTS, f"{component}."
    state, metadata = _read_file(folder, pipeline)
    state = {name.removeprefix(start): value for name, value in state.items()}
    config = _config(path, {name: tuple(value.shape) for name, value in state.items()}, metadata, start)
    merged = dict(weights)
    for name in state:
        layer, _, half = name.partition(".lora_")
        if half not in ("A.weight", "B.weight") or config.use_dora:
            raise ValueError(f"{path} holds {name}, which cannot be merged")
        if half == "A.weight":
            a, b = state[layer + _A], state[layer + _B]
            changed = f"{layer}.weight"
            merged[changed] = _changed(changed, weights[changed], a, b, _scale(path, config, layer, len(a)))
    return merged


def _config(path: Path, shapes: Mapping[str, Shape], metadata: dict[str, Any] | None, start: str) -> "LoraConfig":
    """Return peft's configuration of a LoRA as diffusers makes it: by the file's metadata, else by the weights.

    Args:
        shapes: of the weights by the names of their layers.
        start: how the component's entries in the metadata begin.

    Raises:
        ValueError: the metadata has an entry that this version of peft does not know.
    """
    from diffusers.utils import get_peft_kwargs
    from peft import LoraConfig

    with raise_as_value_error(f"peft cannot use the metadata of {path}"):
        if metadata is None:
            # diffusers' form of a pattern that matches one layer alone.
            ranks = {f"^{name}": shape[1] for name, shape in shapes.items() if name.endswith(_B)}
            return LoraConfig(**get_peft_kwargs(ranks, None, shapes))
        return LoraConfig(**{key.removeprefix(start): metadata[key] for key in metadata if key.startswith(start)})


def _scale(path: Path, config: "LoraConfig", layer: str, rank: int) -> float:
    """Return the factor of a layer's B A, alpha / rank, as peft finds it.

    Raises:
        ValueError: the configuration gives the layer another rank, or is no number.
    """
    from peft.utils.other import get_pattern_key

    with raise_as_value_error(f"peft cannot use the metadata of {path}"):
        stated = config.rank_pattern.get(get_pattern_key(config.rank_pattern, layer), config.r)
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern, layer), config.lora_alpha)
        scale = alpha / (rank**0.5 if config.use_rslora else rank)
    if stated != rank:
        raise ValueError(f"{path} has {layer} in rank {rank}, but {stated} by its metadata: save the LoRA again")
    return scale


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


def load_lora(network: nn.Module, folder: Path, pipeline: Any, component: str) -> None:
    """Put a LoRA in diffusers' layout beside the layers of the network. Call `check_lora` before.

    Raises:
        ValueError: peft cannot use the LoRA.
    """
    state, metadata = _read_file(folder, pipeline)
    with raise_as_value_error(f"{folder / LORA_WEIGHTS} does not fit the network"):
        network.load_lora_adapter(state, prefix=component, metadata=metadata)
