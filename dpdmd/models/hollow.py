"""Write the folder of a family's official model without its weights: real headers over files that hold nothing.

Checks and estimates read only small files and headers, so they work on such a folder before anything is downloaded.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dpdmd.models.layout import Layout
from dpdmd.models.loading import quieten_libraries
from dpdmd.models.tensor_files import file_head
from dpdmd.models.weight_files import DIFFUSERS_STEM, TRANSFORMERS_STEM
from dpdmd.utils.atomic_files import write_json


def write_hollow(layout: Layout, folder: Path, model: str = "") -> None:
    """Write the pipeline folder of `layout.official`, with weights in bf16 that take no disk space.

    The tokenizers are placeholders. The file system must support sparse files.

    Args:
        model: another model of the family (`layout.other_official`).
    """
    index: dict[str, Any] = {"_class_name": layout.pipeline}
    others = layout.other_official.get(model, {})
    for name, values in layout.official.items():
        config = {**values, **others.get(name, {})}
        (folder / name).mkdir(parents=True)
        if name in layout.classes:
            index[name] = _write_network(folder / name, layout.classes[name], config)
        elif name == "scheduler":
            index[name] = ["diffusers", config["_class_name"]]
            write_json(folder / name / "scheduler_config.json", config)
        else:
            index[name] = ["transformers", config["tokenizer_class"]]
            write_json(folder / name / "tokenizer_config.json", config)
            write_json(folder / name / "tokenizer.json", {})
    write_json(folder / "model_index.json", index)


def _write_network(folder: Path, kind: str, config: Mapping[str, Any]) -> list[str]:
    """Write one component's configuration and header. Return its library and class, as in model_index.json."""
    import diffusers
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    quieten_libraries()
    if hasattr(transformers, kind):
        network_class = getattr(transformers, kind)
        with torch.device("meta"):
            network = network_class(network_class.config_class(**config))
        network.config.save_pretrained(folder)
        stored = revert_weight_conversion(network, _stored(network))  # some classes have other names in their files
        _write_header(folder / f"{TRANSFORMERS_STEM}.safetensors", stored)
        return ["transformers", kind]
    with torch.device("meta"):
        network = getattr(diffusers, kind)(**config)
    network.save_config(folder)
    _write_header(folder / f"{DIFFUSERS_STEM}.safetensors", _stored(network))
    return ["diffusers", kind]


def _stored(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a network by name, a tied one once."""
    first: dict[int, str] = {}
    state = network.state_dict(keep_vars=True)
    for name, value in state.items():
        first.setdefault(id(value), name)
    return {name: state[name] for name in first.values()}


def _write_header(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a .safetensors file of `weights` in bf16 whose data is a hole in the file."""
    head, size = file_head({name: (torch.bfloat16, value.shape) for name, value in weights.items()})
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + size)
