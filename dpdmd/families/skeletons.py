"""Whether every weight of a model's folder is there: each class is built without numbers, and nothing large is read.

The libraries put random numbers where a file has none, and some of them say so only in a warning. What a class needs is
asked of the class itself, so that a change of names in a library is known here as well.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from dpdmd.families.components import quieten_libraries
from dpdmd.families.layouts import Layout
from dpdmd.families.model_folders import naming
from dpdmd.text_files import read_text
from dpdmd.weight_files import check_weights, read_json, refuse_misfits


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
                _check_transformers(layout.classes[part], folder / part)
            elif part.startswith("tokenizer"):
                _check_tokenizer(kind, folder / part)


def _check_diffusers(layout: Layout, folder: Path, part: str) -> None:
    # Not by from_pretrained, as below: without a place for the numbers it reads them all the same.
    kind = getattr(diffusers, layout.classes[part])
    path = folder / part / "config.json"
    with _told(f"{path} does not describe a {kind.__name__}"), torch.device("meta"):
        skeleton = kind.from_config(read_json(path))
    found = layout.weights_header(folder, part)
    # The first autoencoders have other names in their attention; the library takes both.
    skeleton._fix_state_dict_keys_on_load(found)
    expected = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    check_weights(found, expected, folder / part, exact=part == layout.network)


def _check_transformers(name: str, folder: Path) -> None:
    kind = getattr(transformers, name)
    with _told(f"{folder / 'config.json'} does not describe a {name}"):
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
    with _told(f"{folder} does not load as a {name}"):
        _, info = kind.from_pretrained(
            folder,
            config=config,
            device_map="meta",
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told with the others
        )
    refuse_misfits(folder, missing=info["missing_keys"], mismatched=info["mismatched_keys"])


def _check_tokenizer(name: str, folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        _read_any_json(path)
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ValueError(f"model_index.json says {folder.name} is a {name}, which transformers has not")
    with _told(f"{folder} does not load as a {name}"):
        kind.from_pretrained(folder, local_files_only=True)("a picture")


def _read_any_json(path: Path) -> Any:
    """transformers does not say which of a tokenizer's files it cannot parse."""
    try:
        return json.loads(read_text(path))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from None


@contextmanager
def _told(what: str) -> Iterator[None]:
    """One line in place of whatever the libraries raise: a wrong file gets them to anything from KeyError to their own.

    Nothing of ours runs inside, so that no mistake of ours is told as one in a file.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"{what} ({type(error).__name__}: {' '.join(lines)[:200]})") from None
