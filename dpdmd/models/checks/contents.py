"""Check that every weight of a model's folder is there, by building each class without memory for its weights.

The libraries put random numbers where a file has none, and some of them only warn. Which weights a class needs is read
from the class itself, so a library that renames weights is followed.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from dpdmd.models.checks.folder import naming
from dpdmd.models.checks.transformers_parts import check_network, check_prompt_tokenizer
from dpdmd.models.layout import Layout, in_numbered_block
from dpdmd.models.loading import quieten_libraries, raise_as_value_error
from dpdmd.models.weight_files import check_weights
from dpdmd.utils.text_files import expecting_mapping_keys, read_json


def check_contents(layout: Layout, folder: Path, flag: str, *, network_only: bool = False, no_t5: bool = False) -> None:
    """Check that all weights and tokenizers of a folder will load. Call `check_folder` before.

    Raises:
        ValueError: one line that names the flag, the file, and where to get it.
    """
    quieten_libraries()
    with naming(layout, folder, flag):
        components = {layout.network: ""} if network_only else layout.components(folder, no_t5=no_t5)
        configs = {}
        for component, kind in sorted(components.items()):  # a text encoder before its tokenizer
            if component in (layout.network, "vae"):
                _check_diffusers(layout, folder, component)
            elif component in layout.classes:
                config = check_network(layout.classes[component], folder / component, all_layers=True)
                configs[component] = config.get_text_config()
            elif component.startswith("tokenizer"):
                if not hasattr(transformers, kind):
                    raise ValueError(f"model_index.json says {component} is a {kind}, which transformers does not have")
                encoder = configs.get(component.replace("tokenizer", "text_encoder"))
                vocabulary = encoder.vocab_size if encoder else None
                length = layout.defaults.max_sequence_length
                tokenizer = check_prompt_tokenizer(kind, folder / component, length, vocabulary)
                if layout.check_tokenizer:
                    try:
                        layout.check_tokenizer(tokenizer)
                    except ValueError as error:
                        raise ValueError(f"{folder / component}: {error}") from None
        if configs:
            _check_text_widths(layout, folder, configs)


def _check_text_widths(layout: Layout, folder: Path, encoders: Mapping[str, Any]) -> None:
    """Check that the text encoders give the network what it reads."""
    with expecting_mapping_keys(folder / layout.network / "config.json"):
        needed = layout.text_widths(layout.network_config(folder))
    kinds = ("a token's embedding", "the pooled embedding")
    for kind, found, wanted in zip(kinds, layout.encoder_widths(encoders), needed, strict=True):
        if found is not None and found != wanted:
            raise ValueError(
                f"{' and '.join(encoders)}: {kind} has {found} numbers, but the {layout.network} reads {wanted}: "
                "another model's?"
            )


def full_network_config(layout: Layout, folder: Path) -> dict[str, Any]:
    """Return the entries of the network's configuration that its class knows, with its defaults where there is none."""
    known = inspect.signature(getattr(diffusers, layout.classes[layout.network])).parameters
    config = {name: parameter.default for name, parameter in known.items()} | layout.network_config(folder)
    return {name: list(config[name]) if isinstance(config[name], tuple) else config[name] for name in known}


def _check_diffusers(layout: Layout, folder: Path, component: str) -> None:
    # from_pretrained on the meta device, as for transformers' networks, would still read all weights.
    kind = getattr(diffusers, layout.classes[component])
    path = folder / component / "config.json"
    with raise_as_value_error(f"{path} does not describe a {kind.__name__}"), torch.device("meta"):
        network = kind.from_config(read_json(path))
    found = layout.weight_shapes(folder, component)
    # The first autoencoders have other names in their attention; the library takes both.
    network._fix_state_dict_keys_on_load(found)
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if component != layout.network:  # official autoencoders may hold more, but no more layers
        found = {name: shape for name, shape in found.items() if name in expected or in_numbered_block(name)}
    check_weights(found, expected, folder / component, exact=True)
