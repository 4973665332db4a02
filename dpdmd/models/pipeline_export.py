"""Write a pipeline folder that diffusers loads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dpdmd.models.deciding_files import deciding_files
from dpdmd.models.layout import Layout
from dpdmd.models.tensor_files import Weights, open_weights, write_tensors
from dpdmd.models.weight_files import SETTINGS_FILES, stem_of
from dpdmd.utils.atomic_files import write_json
from dpdmd.utils.folders import copy_tree, supports_links
from dpdmd.utils.text_files import read_json


def export_pipeline(
    layout: Layout,
    folder: Path,
    weights: Weights,
    source: Path,
    *,
    no_t5: bool,
    copy: bool,
    dtype: torch.dtype | None = None,
) -> None:
    """Create a pipeline folder, without its scheduler: the network from `weights`, all else from `source`.

    Args:
        copy: copy what does not change; if false, link to it, if the file system has links.
        dtype: type of all weights; without it the network is fp32, and the other parts stay as they are.
    """
    source = source.resolve()
    start_pipeline(layout, folder, source, no_t5=no_t5)
    copy = copy or not supports_links(folder)
    for name in other_components(layout, source, no_t5=no_t5):
        place, origin = folder / name, source / name
        if dtype and name in layout.classes:
            stem = stem_of(name, layout.network)
            write_component(place, origin, open_weights(origin, stem), stem, dtype)
        elif (config := _fp32_config(origin)) is None and not copy:
            place.symlink_to(origin)
        else:
            _copy_loaded_files(place, origin, config, copy=copy)
    stem = stem_of(layout.network, layout.network)
    write_component(folder / layout.network, source / layout.network, weights, stem, dtype or torch.float32)


def export_settings(layout: Layout, folder: Path, source: Path, *, no_t5: bool) -> None:
    """Create a pipeline folder without weights and scheduler: configurations and tokenizers."""
    start_pipeline(layout, folder, source, no_t5=no_t5)
    for name in (layout.network, *other_components(layout, source, no_t5=no_t5)):
        _copy_settings(folder / name, source / name)


def start_pipeline(layout: Layout, folder: Path, source: Path, *, no_t5: bool) -> None:
    """Create the folder with model_index.json, where the components of a T5 are null if `no_t5`."""
    folder.mkdir(parents=True)
    without = layout.t5 if no_t5 else ()
    index = read_json(source / "model_index.json") | {component: [None, None] for component in without}
    write_json(folder / "model_index.json", index)


def other_components(layout: Layout, source: Path, *, no_t5: bool) -> list[str]:
    """Return the components of a pipeline but the network and the scheduler."""
    return [name for name in layout.components(source, no_t5=no_t5) if name not in (layout.network, "scheduler")]


def write_component(folder: Path, source: Path, weights: Weights, stem: str, dtype: torch.dtype) -> None:
    """Create a component with the settings of `source` and one file of `weights`, in `dtype`."""
    _copy_settings(folder, source)
    write_tensors(folder / f"{stem}.safetensors", {name: value.to(dtype) for name, value in weights.items()})


def _copy_settings(folder: Path, source: Path) -> None:
    """Create a component with the configurations and tokenizers' files of `source`."""
    folder.mkdir()
    config = _fp32_config(source)
    for path in source.iterdir():
        if path.name == "config.json" and config is not None:
            write_json(folder / path.name, config)
        elif path.name.endswith(SETTINGS_FILES) and ".index." not in path.name:
            copy_tree(path, folder / path.name)


def _copy_loaded_files(folder: Path, source: Path, config: dict[str, Any] | None, *, copy: bool) -> None:
    """Create a component with the files of `source` that are loaded, copied or linked.

    A repository may have the weights in other formats and precisions beside them, many times as large.

    Args:
        config: the configuration in place of that of `source`; None for the same.
    """
    folder.mkdir()
    for path in deciding_files(source):
        if path.name == "config.json" and config is not None:
            write_json(folder / path.name, config)
        elif copy:
            copy_tree(path, folder / path.name)
        else:
            (folder / path.name).symlink_to(path)


def _fp32_config(component: Path) -> dict[str, Any] | None:
    """Return the configuration of a transformers model that is stored in 16 bits, changed to fp32; else None.

    Without `dtype=`, diffusers loads every model in fp32, but transformers loads it in the type of its config.json,
    else of its weights. A pipeline with both types ends in an error.
    """
    path = component / "config.json"
    config = read_json(path) if path.is_file() else {"_class_name": None}
    if "_class_name" in config or config.get("dtype", config.get("torch_dtype")) == "float32":
        return None
    return {name: value for name, value in config.items() if name != "torch_dtype"} | {"dtype": "float32"}


def set_steps(scheduler: Any, steps: int, times: Sequence[float] | None, mu: float | None = None) -> None:
    """Set a scheduler's steps as diffusers' pipeline does: by `times`, or by the number alone if they are None.

    Args:
        mu: the dynamic shift that the pipeline computes, if it gives the scheduler one. A scheduler without
            `use_dynamic_shifting` ignores it.
    """
    dynamic = {} if mu is None else {"mu": mu}
    if times is None:
        scheduler.set_timesteps(steps, **dynamic)
    else:
        scheduler.set_timesteps(sigmas=list(times), **dynamic)


def makes_grid(
    scheduler: Any, sigmas: Sequence[float], times: Sequence[float] | None = None, mu: float | None = None
) -> bool:
    """Return whether a scheduler of diffusers makes the grid `sigmas` [N + 1] from the number of steps alone.

    Args:
        times, mu: what the pipeline gives the scheduler for this number of steps (`set_steps`).
    """
    set_steps(scheduler, len(sigmas) - 1, times, mu)
    wanted = torch.tensor(sigmas)
    found = scheduler.sigmas.cpu()
    return found.shape == wanted.shape and torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)
