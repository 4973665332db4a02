"""Write a pipeline folder that diffusers loads."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from diffusers import ModelMixin
from torch import Tensor

from dpdmd.utils.text_files import read_json


def export_unchanged(
    folder: Path, source: Path, components: Sequence[str], *, without: Sequence[str] = (), copy: bool
) -> None:
    """Create a pipeline folder with model_index.json and the `components` of `source` that stay as they are.

    Only the configurations of text encoders that are stored in 16 bits are changed: to load in fp32, like the network.

    Args:
        without: components that are null in model_index.json.
        copy: copy the components; if false, link to them, or to their weights if the configuration is changed.
    """
    source = source.resolve()
    folder.mkdir(parents=True)
    for component in components:
        if copy:
            _copy(source / component, folder / component, shutil.copy2)
        elif _fp32_config(source / component) is None:
            (folder / component).symlink_to(source / component)
        else:
            _copy(source / component, folder / component, os.symlink)
    index = read_json(source / "model_index.json") | {component: [None, None] for component in without}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy(source: Path, folder: Path, copy_file: Callable[[str, str], Any]) -> None:
    """Copy or link the files of a component with `copy_file`; write its configuration if `_fp32_config` changes it."""
    config = _fp32_config(source)

    def place(file: str, target: str) -> None:
        if config and Path(file) == source / "config.json":
            Path(target).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        else:
            copy_file(file, target)

    shutil.copytree(source, folder, copy_function=place)


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
    """Write one component with the configuration of `source` and the weights of `state`."""
    network = kind.from_config(kind.load_config(source))
    network.load_state_dict(state, strict=True, assign=True)
    network.save_pretrained(folder)
