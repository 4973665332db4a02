"""Write a pipeline folder that diffusers loads."""

import json
from collections.abc import Sequence
from pathlib import Path

from diffusers import ModelMixin
from torch import Tensor

from dpdmd.utils.folders import copy_tree, link_or_copy
from dpdmd.utils.text_files import read_json


def export_unchanged(
    folder: Path, source: Path, components: Sequence[str], *, without: Sequence[str] = (), copy: bool
) -> None:
    """Create a pipeline folder with model_index.json and the `components` of `source` that stay as they are.

    Args:
        without: components that are null in model_index.json.
        copy: copy the components; if false, link to them if the file system has links.
    """
    source = source.resolve()
    folder.mkdir(parents=True)
    for component in components:
        (copy_tree if copy else link_or_copy)(source / component, folder / component)
    index = read_json(source / "model_index.json") | {component: [None, None] for component in without}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def export_network(kind: type[ModelMixin], folder: Path, state: dict[str, Tensor], source: Path) -> None:
    """Write one component with the configuration of `source` and the weights of `state`."""
    network = kind.from_config(kind.load_config(source))
    network.load_state_dict(state, strict=True, assign=True)
    network.save_pretrained(folder)
