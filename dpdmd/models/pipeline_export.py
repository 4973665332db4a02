"""Write a pipeline folder that diffusers loads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from dpdmd.utils.folders import copy_tree, link_or_copy
from dpdmd.utils.text_files import read_json


def export_unchanged(
    folder: Path, source: Path, components: Sequence[str], *, without: Sequence[str] = (), copy: bool
) -> None:
    """Create a pipeline folder with model_index.json and the `components` of `source` that stay as they are.

    Only the configurations of text encoders that are stored in 16 bits are changed: to load in fp32, like the network.

    Args:
        without: components that are null in model_index.json.
        copy: copy the components; if false, link to what does not change, if the file system has links.
    """
    source = source.resolve()
    folder.mkdir(parents=True)
    for component in components:
        config = _fp32_config(source / component)
        if config is None:
            (copy_tree if copy else link_or_copy)(source / component, folder / component)
        else:
            _write_with_config(folder / component, source / component, config, copy=copy)
    index = read_json(source / "model_index.json") | {component: [None, None] for component in without}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_with_config(folder: Path, source: Path, config: dict[str, Any], *, copy: bool) -> None:
    """Create a component with the files of `source`, copied or linked, but with another configuration."""
    folder.mkdir()
    for path in source.iterdir():
        if path.name != "config.json":
            (copy_tree if copy else link_or_copy)(path, folder / path.name)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


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


def export_network(kind: type[ModelMixin], folder: Path, state: dict[str, Tensor], source: Path) -> None:
    """Write one component with the configuration of `source` and the weights of `state`, without a copy of them."""
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(source))
    network.load_state_dict(state, strict=True, assign=True)
    network.save_pretrained(folder)
