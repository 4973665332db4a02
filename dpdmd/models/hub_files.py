"""The files of a repository on the Hub that a flag needs: not its single-file checkpoints, nor other variants.

Each function takes the names of the repository's files, or of a folder's, and returns a mapping from the name that a
file has in a folder without variants to the name that it has there. Imports neither torch nor diffusers.
"""

import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

from dpdmd.models.weight_files import DIFFUSERS_STEM, SETTINGS_FILES, TRANSFORMERS_STEM
from dpdmd.utils.paths import DEFAULTS_FILE, LORA_WEIGHTS, MODEL_INDEX

Files = dict[str, str]
ReadJson = Callable[[str], dict[str, Any]]  # name of a file of the repository -> its content
# (names of files, reader, variant) -> files; raises a ValueError if a set is incomplete.
Select = Callable[[Collection[str], ReadJson, str | None], Files]

_ABOUT = re.compile("README.md|LICEN[SC]E[^/]*", re.IGNORECASE)
_OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def pipeline_files(
    names: Collection[str], read: ReadJson, variant: str | None, *, without: Collection[str] = ()
) -> Files:
    """Return the files of a whole pipeline; the components `without` are not needed.

    Raises:
        ValueError: there is no pipeline, or a component's weights are missing, incomplete or not of the variant.
    """
    if MODEL_INDEX not in names:
        raise ValueError(f"holds no pipeline in the diffusers layout ({MODEL_INDEX} is missing)")
    files = _about(names) | {MODEL_INDEX: MODEL_INDEX}
    for component, value in read(MODEL_INDEX).items():
        # As in `Layout.components`: [library, class], or [null, null] for a component that is left out.
        if isinstance(value, list) and all(isinstance(word, str) for word in value) and component not in without:
            files |= _component(names, component, variant)
    return files


def network_files(names: Collection[str], read: ReadJson, variant: str | None, *, component: str) -> Files:
    """Return the files of one component, and of the sampling defaults.

    Raises:
        ValueError: the component is missing, incomplete or not of the variant.
    """
    found = _component(names, component, variant)
    if not found:
        raise ValueError(f"{component} is missing")
    return _about(names) | found


def model_files(names: Collection[str], read: ReadJson, variant: str | None) -> Files:
    """Return the files of a pipeline, or of a LoRA as this project publishes it.

    Raises:
        ValueError: there is neither, or weights are missing, incomplete or not of the variant.
    """
    if MODEL_INDEX in names or LORA_WEIGHTS not in names:
        return pipeline_files(names, read, variant)
    return _about(names) | {LORA_WEIGHTS: LORA_WEIGHTS} | _settings(names, "scheduler")


def folder_files(names: Collection[str], read: ReadJson, variant: str | None, *, weights: bool) -> Files:
    """Return the files of a transformers or OpenCLIP model, or without `weights` only its configurations.

    Raises:
        ValueError: weights are missing, incomplete or not of the variant.
    """
    files = _about(names) | _settings(names, "")
    if not weights:
        return files
    if "config.json" not in names:
        if found := next((name for name in _OPEN_CLIP if name in names), None):
            return files | {found: found}
        raise ValueError("config.json is missing")
    return files | _weights(names, "", variant)


def one_file(names: Collection[str], read: ReadJson, variant: str | None, *, name: str) -> Files:
    """Return one file.

    Raises:
        ValueError: it is missing.
    """
    if name not in names:
        raise ValueError(f"{name} is missing")
    return {name: name}


def is_about(name: str) -> bool:
    """Return whether a file is the model's card or licence, which other programs do not fetch."""
    return bool(_ABOUT.fullmatch(name))


def _about(names: Iterable[str]) -> Files:
    return {name: name for name in names if name == DEFAULTS_FILE or is_about(name)}


def _inside(names: Iterable[str], folder: str) -> list[str]:
    """Return the names of the files in a folder, without those in its subfolders."""
    return sorted(name for name in names if name.rpartition("/")[0] == folder)


def _settings(names: Iterable[str], folder: str) -> Files:
    """Return the configurations and tokenizer files in a folder, without the indices of weights."""
    found = [name for name in _inside(names, folder) if name.endswith(SETTINGS_FILES) and ".index." not in name]
    return {name: name for name in found}


def _component(names: Collection[str], component: str, variant: str | None) -> Files:
    files = _settings(names, component)
    # Schedulers, tokenizers and image processors have configurations of other names, and no weights.
    return files | _weights(names, component, variant) if f"{component}/config.json" in files else files


def _weights(names: Collection[str], folder: str, variant: str | None) -> Files:
    """Return one whole set of weights: a file, or an index with all its shards.

    Raises:
        ValueError: there is none of this variant; the message says what there is.
    """
    prefix = f"{folder}/" if folder else ""
    inside = {name.removeprefix(prefix) for name in _inside(names, folder)}
    for stem in (DIFFUSERS_STEM, TRANSFORMERS_STEM):
        if found := _of_stem(inside, stem, variant, prefix):
            return {prefix + name: prefix + source for name, source in found.items()}
    raise ValueError(_explain(inside, folder, variant))


def _of_stem(inside: Collection[str], stem: str, variant: str | None, prefix: str) -> Files:
    suffix = f".{variant}" if variant else ""
    if (single := f"{stem}{suffix}.safetensors") in inside:
        return {f"{stem}.safetensors": single}
    # The libraries' names of an index, and their older one.
    indices = (f"{stem}.safetensors.index{suffix}.json", f"{stem}.safetensors{suffix}.index.json")
    index = next((name for name in indices if name in inside), None)
    if index is None:
        return {}
    number = r"(\d{5})-of-(\d{5})"
    forms = (rf"{stem}{re.escape(suffix)}-{number}\.safetensors", rf"{stem}-{number}{re.escape(suffix)}\.safetensors")
    found = [[match for name in sorted(inside) if (match := re.fullmatch(form, name))] for form in forms]
    shards = next((matches for matches in found if matches), [])
    counts = {int(match[2]) for match in shards}
    if not shards or counts != {len(shards)}:
        total = max(counts, default=0)
        raise ValueError(f"{prefix}{index} is there with {len(shards)} of its {total or 'shards'}: incomplete")
    return {f"{stem}.safetensors.index.json": index} | {match[0]: match[0] for match in shards}


def _explain(inside: Iterable[str], folder: str, variant: str | None) -> str:
    """Return an error about weights that are not there: what is there instead, and what to do."""
    place, stems = folder or "the model", "|".join((DIFFUSERS_STEM, TRANSFORMERS_STEM))
    forms = re.compile(rf"(?:{stems})(?:-\d{{5}}-of-\d{{5}})?(?:\.([^.-]+))?(?:-\d{{5}}-of-\d{{5}})?\.safetensors")
    variants = sorted({match[1] or "" for name in inside if (match := forms.fullmatch(name))})
    if variant:
        others = ", ".join(other or "no variant" for other in variants) or "none"
        return f"{place} has no weights of --variant {variant} (it has: {others}); leave the flag out"
    if variants and "" not in variants:
        return f"{place} has its weights only as {' and '.join(variants)}; give --variant {variants[0]}"
    pickles = [name for name in inside if name.endswith(".bin")]
    return f"{place} has no .safetensors weights" + (f" (a pickle, {pickles[0]}, is not read)" if pickles else "")
