"""Whether a model's folder is whole and of its family, by its small files and the headers of its large ones.

Does not import diffusers, which takes seconds, so a wrong path is told at once; `skeletons.py` looks closer.
"""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpdmd.models.layout import Layout
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sampling_defaults import read_sampling_defaults
from dpdmd.models.weight_files import check_weights, require_folder, where_to_get
from dpdmd.utils.text_files import expecting_mapping_keys, read_json

_TOKENIZER_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",))


class MovedError(ValueError):
    """A part is a link to a folder that is not there."""


@contextmanager
def naming(layout: Layout, folder: Path, flag: str) -> Iterator[None]:
    """Complete what is told of a folder's files with the flag that gave it, and where to get a whole one."""
    hint = where_to_get(folder, layout.repository)
    try:
        yield
    except MovedError as error:  # nothing that could be got anywhere
        raise ValueError(f"{flag} {folder}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{flag} {folder}: {error}; {hint}") from None
    except OSError as error:
        raise ValueError(f"{flag} {folder}: {error.filename} cannot be read ({error.strerror})") from None


def check_folder(layout: Layout, folder: Path, flag: str, *, network_only: bool = False, no_t5: bool = False) -> None:
    """Check a pipeline folder, or only the part that is distilled; with `no_t5` its T5 need not be there.

    Raises:
        ValueError: one line that names the flag, the file, and where to get it.
    """
    if no_t5 and not layout.t5:
        raise ValueError(f"--no_t5: a {layout.pipeline} has no T5 to leave out; leave the flag out")
    with naming(layout, folder, flag):
        require_folder(folder)
    read_sampling_defaults(folder, layout.defaults)  # ours, and not to be got where the weights are
    with naming(layout, folder, flag):
        parts = [layout.network] if network_only else _check_index(layout, folder, no_t5=no_t5)
        for part in parts:
            _check_part(layout, folder, part)


def _check_index(layout: Layout, folder: Path, *, no_t5: bool) -> list[str]:
    """Components of a whole pipeline, of the family's classes."""
    found = read_json(folder / "model_index.json").get("_class_name")
    if found != layout.pipeline:
        other = [f" (it is of --family {name})" for name, it in LAYOUTS.items() if it.pipeline == found]
        told = f"model_index.json is of a {found}, but a {layout.pipeline} is needed"
        raise ValueError(told + "".join(other))
    layout.check_index(folder)
    listed = layout.listed(folder, no_t5=no_t5)
    if lacking := [name for name in (layout.network, *layout.needed) if name not in listed]:
        raise ValueError(f"model_index.json lacks {', '.join(lacking)}")
    for part, kind in listed.items():
        if kind != layout.classes.get(part, kind):
            raise ValueError(f"model_index.json says {part} is a {kind}, but a {layout.classes[part]} is needed")
    for encoder in (part for part in listed if part.startswith("text_encoder")):
        if (tokenizer := encoder.replace("text_encoder", "tokenizer")) not in listed:
            raise ValueError(f"model_index.json lists {encoder}, but no {tokenizer}")
    return list(listed)


def _check_part(layout: Layout, folder: Path, part: str) -> None:
    if not (folder / part).is_dir():
        if (folder / part).is_symlink():  # of a checkpoint on the way: the part is the teacher's
            raise MovedError(
                f"{folder / part} is a link to {os.readlink(folder / part)}, which is not there: was the model moved? "
                "Put it back, or a link to it"
            )
        raise ValueError(f"{folder / part} is missing")
    if part == "scheduler":
        layout.schedule(folder)
    elif part.startswith("tokenizer"):
        if not any(all((folder / part / name).exists() for name in names) for names in _TOKENIZER_FILES):
            raise ValueError(
                f"{folder / part} holds no tokenizer (tokenizer.json, vocab.json + merges.txt or spiece.model)"
            )
    elif not part.startswith("feature_extractor"):
        read_json(folder / part / "config.json")
        header = layout.weights_header(folder, part)
        if part == layout.network:
            _check_network(layout, folder / part, header)
        elif part == "vae":
            _check_vae(layout, folder)


def _check_network(layout: Layout, folder: Path, header: Mapping[str, Any]) -> None:
    """Compare some of the weights' names and shapes with the configuration beside them."""
    config = read_json(folder / "config.json")
    prefix, count = layout.blocks
    found = {name.removeprefix(prefix).partition(".")[0] for name in header if name.startswith(prefix)}
    with expecting_mapping_keys(folder / "config.json"):
        expected, blocks = layout.shapes(config), count(config)
        int(config.get("sample_size", 0)), layout.latents(config)  # what is read of it later
    if len(found) != blocks:
        raise ValueError(f"{folder}: its weights have {len(found)} blocks, its config.json {blocks}")
    check_weights(header, expected, folder)


def _check_vae(layout: Layout, folder: Path) -> None:
    path = folder / "vae" / "config.json"
    with expecting_mapping_keys(path):
        factor = layout.factor_of(folder)
    if layout.factor not in (None, factor):
        raise ValueError(f"{path}: a latent spans {factor} pixels, not {layout.factor}")
    config = read_json(path)
    for name, least in (("scaling_factor", True), ("shift_factor", False)):  # read when the first image is decoded
        value = config.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (value is None or number) or (least and number and value <= 0):
            raise ValueError(f"{path} sets {name} {value!r}, which must be a number")
    channels, wanted = config.get("latent_channels", 4), layout.network_config(folder).get("in_channels")
    if channels != wanted:
        raise ValueError(f"{path}: its latents have {channels} channels, the {layout.network}'s {wanted}")
