"""The identity of a model: digests of the content that decides its results, whatever its path.

Results that are kept on disk (caches, images, scores, checkpoints) carry the identity of the model behind them, so that
a model that was changed in place is recognised. Does not import diffusers.
"""

import filecmp
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpdmd.models.deciding_files import deciding_files
from dpdmd.models.layout import Layout
from dpdmd.models.sampling_defaults import DEFAULTS_FILE
from dpdmd.utils.file_digests import sha256_of_files
from dpdmd.utils.paths import MODEL_INDEX
from dpdmd.utils.text_files import read_json
from dpdmd.utils.versions import library_versions

Identity = dict[str, str]  # part of a model -> digest of its content

_TYPES = ("dtype", "torch_dtype")  # entries of config.json that a loader's own type overrides


def identify(parts: Mapping[str, Path | None]) -> Identity:
    """Return the identity of files, and of folders by the files that the libraries read from them.

    Args:
        parts: name -> path; None is left out.

    Raises:
        ValueError: a file cannot be read.
    """
    files = {name: (path, deciding_files(path)) for name, path in parts.items() if path}
    paths = list(dict.fromkeys(file for _, found in files.values() for file in found))
    try:
        digests = dict(zip(paths, sha256_of_files(paths), strict=True))
    except OSError as error:
        raise ValueError(f"{error.filename} cannot be read ({error.strerror})") from None
    return {
        name: digest([(file.relative_to(path).as_posix(), digests[file]) for file in found])
        for name, (path, found) in files.items()
    }


def identify_text(layout: Layout, folder: Path, *, no_t5: bool = False) -> Identity:
    """Return the identity of what decides a pipeline's text embeddings.

    Raises:
        ValueError: a file cannot be read.
    """
    components = layout.components(folder, no_t5=no_t5)
    return _identify_components(folder, [name for name in components if name.startswith(("text_encoder", "tokenizer"))])


def identify_pipeline(layout: Layout, folder: Path, *, no_t5: bool = False, without: Iterable[str] = ()) -> Identity:
    """Return the identity of what decides a pipeline's images.

    Args:
        without: components that do not matter, such as the decoder for latents.

    Raises:
        ValueError: a file cannot be read.
    """
    components = [name for name in layout.components(folder, no_t5=no_t5) if name not in without]
    defaults = folder / DEFAULTS_FILE
    return _identify_components(folder, components) | identify({DEFAULTS_FILE: defaults if defaults.exists() else None})


def _identify_components(folder: Path, components: Iterable[str]) -> Identity:
    """Return the identity of components and of what model_index.json says about them."""
    index = read_json(folder / MODEL_INDEX)
    options = {name: value for name, value in index.items() if not (name.startswith("_") or isinstance(value, list))}
    options |= {name: index.get(name) for name in ("_class_name", *components)}
    # A component may be listed without a folder, such as a safety checker, if it is never loaded.
    paths = {name: folder / name for name in components if (folder / name).is_dir()}
    return {MODEL_INDEX: digest(options), **identify(paths)}


def same_content(one: Path, other: Path) -> bool:
    """Return whether two component folders load as the same model, whatever type their config.json gives the weights.

    An exported student has its teacher's text encoders with another type in config.json (`pipeline_export.py`).
    """
    files = [{file.relative_to(folder): file for file in deciding_files(folder)} for folder in (one, other)]
    return files[0].keys() == files[1].keys() and all(
        _same_file(file, files[1][name]) for name, file in files[0].items()
    )


def _same_file(one: Path, other: Path) -> bool:
    if one.name != "config.json":
        return one.samefile(other) or filecmp.cmp(one, other, shallow=False)
    configs = [read_json(path) for path in (one, other)]
    kept = [{name: value for name, value in config.items() if name not in _TYPES} for config in configs]
    return kept[0] == kept[1]


def cache_key(identity: Identity) -> str:
    """Return the string that ties a cache to the model that made it, and to the versions of the libraries."""
    return digest([identity, library_versions()])


def digest(value: Any) -> str:
    """Return a digest of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def changed_parts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the parts in which two identities differ."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
