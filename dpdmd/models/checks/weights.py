"""Whether every weight of a model's folder is there: each class is built without numbers, and nothing large is read.

The libraries put random numbers where a file has none, and some of them say so only in a warning. What a class needs is
asked of the class itself, so that a change of names in a library is known here as well.
"""

from pathlib import Path

import diffusers
import torch
import transformers

from dpdmd.models.checks.folder import naming
from dpdmd.models.checks.transformers_parts import check_network, check_tokenizer
from dpdmd.models.common import quieten_libraries
from dpdmd.models.layout import Layout
from dpdmd.models.loading import raise_as_value_error
from dpdmd.models.weight_files import check_weights
from dpdmd.utils.text_files import read_json


def check_contents(layout: Layout, folder: Path, flag: str, *, network_only: bool = False, no_t5: bool = False) -> None:
    """Check that every component's weights and every tokenizer will load; for a folder that `check_folder` let pass.

    Raises:
        ValueError: one line that names the flag, the file, and where to get it.
    """
    quieten_libraries()
    with naming(layout, folder, flag):
        parts = {layout.network: ""} if network_only else layout.listed(folder, no_t5=no_t5)
        for part, kind in parts.items():
            if part in (layout.network, "vae"):
                _check_diffusers(layout, folder, part)
            elif part in layout.classes:
                check_network(layout.classes[part], folder / part)
            elif part.startswith("tokenizer"):
                if not hasattr(transformers, kind):
                    raise ValueError(f"model_index.json says {part} is a {kind}, which transformers has not")
                check_tokenizer(kind, folder / part)


def _check_diffusers(layout: Layout, folder: Path, part: str) -> None:
    # Not by from_pretrained, as below: without a place for the numbers it reads them all the same.
    kind = getattr(diffusers, layout.classes[part])
    path = folder / part / "config.json"
    with raise_as_value_error(f"{path} does not describe a {kind.__name__}"), torch.device("meta"):
        skeleton = kind.from_config(read_json(path))
    found = layout.weight_shapes(folder, part)
    # The first autoencoders have other names in their attention; the library takes both.
    skeleton._fix_state_dict_keys_on_load(found)
    expected = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    check_weights(found, expected, folder / part, exact=part == layout.network)
