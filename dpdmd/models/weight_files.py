"""Files that hold weights, and the JSON beside them: whether they are whole, from the little that is read of them.

Imports neither torch nor diffusers, so a wrong file is reported within a second.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.text_files import read_json, require_regular

TRANSFORMERS_STEM, DIFFUSERS_STEM = "model", "diffusion_pytorch_model"  # the libraries' names of a weights file
Shape = tuple[int, ...]
_GIT_LFS = b"version https://git-lfs"
SETTINGS_FILES = (".json", ".txt", ".model", ".jinja")  # endings of configurations and of tokenizers' files
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")  # torch's zip file, and its older bare pickle
FLOATS = {  # safetensors' names of the types that weights may have -> torch's
    "F64": "float64",
    "F32": "float32",
    "BF16": "bfloat16",
    "F16": "float16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
_WHOLE_NUMBERS = ("position_ids", "token_type_ids", "num_batches_tracked")  # buffers of official models, by their ends
_IMAGE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


class UnreadableError(ValueError):
    """A file that is there cannot be read."""


def stem_of(component: str, network: str) -> str:
    """Return the name of a component's weights file, without the ending, as the component's library reads it."""
    return DIFFUSERS_STEM if component in (network, "vae") else TRANSFORMERS_STEM


def where_to_get(path: Path, repository: str) -> str:
    """Return advice on missing weights at `path`: download them, or find the ones that come with this code."""
    if path.parts[:2] == ("weights", "tiny"):
        if Path("weights/tiny").is_dir():
            return "give another path, or get it as it came with this code by git checkout weights/tiny"
        return "it comes with this code; start in the checkout, where these paths lead"
    return f"get it from https://huggingface.co/{repository} (bash scripts/download_weights.sh --help lists the names)"


def require_folder(folder: Path) -> None:
    """Check that a folder of weights is a folder.

    Raises:
        ValueError: the folder is missing, or is a file, such as one with all weights of a model.
    """
    if folder.is_file():
        raise ValueError("is a file; give the folder of a model in its library's layout, with its config.json")
    if not folder.is_dir():
        raise ValueError("no such folder")


def require_image_processor(folder: Path) -> None:
    """Check that a folder has the configuration of an image processor.

    Raises:
        ValueError: the file is missing.
    """
    if not any((folder / name).is_file() for name in _IMAGE_PROCESSORS):
        raise ValueError(f"{folder / _IMAGE_PROCESSORS[0]} is missing")


def check_model_folder(folder: Path) -> None:
    """Check that a folder has a config.json and whole weights.

    Raises:
        ValueError: a file is missing or not whole.
    """
    require_folder(folder)
    read_json(folder / "config.json")
    read_weight_shapes(folder)


def read_shapes(path: Path) -> dict[str, Shape]:
    """Return the shape of each tensor of a whole .safetensors file; the tensors are not read.

    Raises:
        ValueError: the file is not readable, truncated or no safetensors file; the message names the file.
    """
    return {name: shape for name, (_, shape) in _read_head(path).items()}


def read_shapes_of_weights(path: Path) -> dict[str, Shape]:
    """Return the shapes of the weights of one .safetensors file (`read_shapes`).

    Raises:
        ValueError: as `read_shapes`, or a weight is of no type that is loaded.
    """
    head = _read_head(path)
    require_floats(path, {name: kind for name, (kind, _) in head.items()}, FLOATS)
    return {name: shape for name, (_, shape) in head.items()}


def _read_head(path: Path) -> dict[str, tuple[str, Shape]]:
    """Return safetensors' name of the type, and the shape, of each tensor of a whole file (`read_shapes`)."""
    try:
        require_regular(path)
        with path.open("rb"):
            pass  # safetensors says "No such file" of one that may not be read
        with safe_open(path, "numpy") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    except PermissionError as error:
        raise UnreadableError(f"{path} cannot be read ({error.strerror})") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file{_explain(path, error)}") from None


def require_floats(path: Path, types: Mapping[str, str], allowed: Collection[str]) -> None:
    """Check that all weights have one of the `allowed` types, but buffers that count.

    The libraries convert any number to the type of the network, so quantised weights without their scales would load.

    Raises:
        ValueError: a weight is quantised, complex, or of an unknown type.
    """
    for name, kind in types.items():
        if kind not in allowed and not name.endswith(_WHOLE_NUMBERS):
            raise ValueError(f"{path} holds {name} as {kind}; its weights must be in fp32, bf16 or fp16")


def _explain(path: Path, error: SafetensorError) -> str:
    """Return what the file holds instead of weights, else the library's reason."""
    with path.open("rb") as file:
        start = file.read(len(_GIT_LFS))
    if start == _GIT_LFS:
        return " but a git-lfs pointer: fetch the weights with `git lfs pull`"
    if start.startswith(_PICKLES):
        return " but a pickle"
    return f", or is truncated ({shorten_error(error).removeprefix('Error while deserializing header: ')})"


def read_weight_shapes(folder: Path, stems: Sequence[str] = (TRANSFORMERS_STEM, DIFFUSERS_STEM)) -> dict[str, Shape]:
    """Return the shapes of one component's weights, from one .safetensors file or from all shards of an index.

    Raises:
        ValueError: a file is missing or not whole.
    """
    return read_all_shapes(find_weight_files(folder, stems))


def read_all_shapes(files: Iterable[Path]) -> dict[str, Shape]:
    """Return the shapes of the weights of several .safetensors files (`read_shapes_of_weights`)."""
    return {name: shape for path in files for name, shape in read_shapes_of_weights(path).items()}


def find_weight_files(folder: Path, stems: Sequence[str] = (TRANSFORMERS_STEM, DIFFUSERS_STEM)) -> list[Path]:
    """Return the files of one component's weights: one .safetensors file, or all shards of an index.

    Args:
        stems: allowed names of the file, without the ending; an error asks for the first one.

    Raises:
        ValueError: a file is missing, a file of diffusers has an index beside it, which diffusers would read, or an
            index is not that of its shards.
    """
    for stem in stems:
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if stem == DIFFUSERS_STEM and single.exists() and index.exists():
            raise ValueError(f"{folder} holds {single.name} and {index.name}: delete the one that is not meant")
        if single.exists():
            return [single]
        if index.exists():
            return _find_shards(index)
    raise ValueError(_explain_missing(folder, stems))


def _find_shards(index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{index} does not say which weight is in which file (its weight_map)")
    paths = [index.parent / shard for shard in sorted(set(shards.values()))]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path} is missing (a shard of {index.name})")
    held = {name: path.name for path in paths for name in _read_head(path)}
    if wrong := sorted(name for name in held.keys() | shards.keys() if held.get(name) != shards.get(name)):
        name = wrong[0]
        fault = f"{name} is in {shards[name]}" if name in shards else f"no file has {name}"
        where = f"it is in {held[name]}" if name in held else "no shard has it"
        raise ValueError(f"by {index}, {fault}, but {where}{_and_more(wrong)}; get the index of these shards")
    return paths


def stored_in_16_bits(files: Iterable[Path]) -> bool:
    """Return whether most numbers of some .safetensors files are in bf16 or fp16.

    Raises:
        ValueError: a file is not whole.
    """
    numbers = {True: 0, False: 0}
    for path in files:
        for kind, shape in _read_head(path).values():
            numbers[kind in ("BF16", "F16")] += math.prod(shape)
    return numbers[True] > numbers[False]


def _explain_missing(folder: Path, stems: Sequence[str]) -> str:
    """Return an error about a folder without the weights file: what is there in its place, and what to do."""
    for stem in stems:
        for shard in sorted(folder.glob(f"{stem}-?????-of-?????.safetensors")):
            return f"{folder / stem}.safetensors.index.json is missing ({shard.name} is one of its shards)"
    for stem in stems:  # model.fp16.safetensors, model.fp16-00001-of-00002..., model-00001-of-00002.fp16...
        for variant in sorted([*folder.glob(f"{stem}.*.safetensors"), *folder.glob(f"{stem}-*.*.safetensors")]):
            whole = variant.name.count("-of-") == 0
            rename = f", or rename it to {stem}.safetensors" if whole else ""
            name = re.sub(r"-\d{5}-of-\d{5}", "", variant.name).split(".")[1]
            return (
                f"{variant} is a variant, which is not read: get {stem}.safetensors instead{rename}; "
                f"--variant {name} reads it in --teacher_id and --model"
            )
    for stem in (*stems, "pytorch_model"):  # the last is transformers' name for a pickle
        for pickled in sorted([*folder.glob(f"{stem}.bin"), *folder.glob(f"{stem}*.bin.index.json")]):
            return f"{pickled} is a pickle, which is not read: get the .safetensors instead"
    return f"{folder / stems[0]}.safetensors is missing"


def check_weights(
    found: Mapping[str, Shape], expected: Mapping[str, Shape], folder: Path, *, exact: bool = False
) -> None:
    """Check that the weights `found` have the `expected` shapes; with `exact` also that there are no others.

    Raises:
        ValueError: the weights do not fit (`raise_on_misfits`).
    """
    raise_on_misfits(
        folder,
        missing=[name for name in expected if name not in found],
        mismatched=[
            (name, found[name], shape) for name, shape in expected.items() if name in found and found[name] != shape
        ],
        unexpected=[name for name in found if name not in expected] if exact else (),
    )


def raise_on_misfits(
    folder: Path,
    *,
    missing: Iterable[str],
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]] = (),
    unexpected: Iterable[str] = (),
) -> None:
    """Raise an error if weights do not fit their configuration; the libraries would use random numbers.

    Args:
        mismatched: (name, shape in the file, shape by the configuration).

    Raises:
        ValueError: one line that names the folder and the first misfit.
    """
    missing, mismatched, unexpected = sorted(missing), sorted(mismatched), sorted(unexpected)
    if missing:
        raise ValueError(f"{folder}: its weights lack {missing[0]}{_and_more(missing)}: another model's?")
    if mismatched:
        name, found, wanted = mismatched[0]
        raise ValueError(
            f"{folder}: {name} has shape {tuple(found)}, by its config.json {tuple(wanted)}{_and_more(mismatched)}: "
            "another model's weights?"
        )
    if unexpected:
        raise ValueError(
            f"{folder}: its weights hold {unexpected[0]}{_and_more(unexpected)}, for which its config.json has no "
            "place: another model's?"
        )


def _and_more(names: Sequence[Any]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def check_pickle(path: Path) -> None:
    """Check that a file begins like a torch checkpoint.

    Raises:
        ValueError: the file is missing or is something else.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    if not start.startswith(_PICKLES):
        raise ValueError(f"{path} is no torch checkpoint (a git-lfs pointer, or text in place of weights?)")
