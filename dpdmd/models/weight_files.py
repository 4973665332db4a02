"""Files that hold weights, and the JSON beside them: told whole from broken by what little of them is read.

Imports neither torch nor diffusers, so a wrong file is told within a second.
"""

import json
import math
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.text_files import read_json, require_regular

TRANSFORMERS_STEM, DIFFUSERS_STEM = "model", "diffusion_pytorch_model"  # what the libraries call a weights file
Shape = tuple[int, ...]
_BYTES = {  # of a number; of types that are not here nothing is known
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")  # torch's zip file, and its older bare pickle


def where_to_get(path: Path, repository: str) -> str:
    """What to do about weights that should be at `path`: the hub's, or ours, which nothing else has."""
    if path.parts[:2] == ("weights", "tiny"):
        return "it comes with this code; start in the checkout, where these paths lead"
    return f"get it from https://huggingface.co/{repository} (scripts/download_weights.sh)"


def require_folder(folder: Path) -> None:
    """Check that a folder of weights is one.

    Raises:
        ValueError: there is none, or a file in its place, such as all of a model's weights in one.
    """
    if folder.is_file():
        raise ValueError("is a file; give the folder of a model in its library's layout, with its config.json")
    if not folder.is_dir():
        raise ValueError("no such folder")


def read_header(path: Path) -> dict[str, Any]:
    """Tensor name -> dtype, shape and data_offsets of a whole .safetensors file; the weights are not read.

    Catches truncated downloads, git-lfs pointers and text in place of weights.

    Raises:
        ValueError: the header does not parse or the data it promises is not there; the message names the file.
    """
    try:
        require_regular(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            raw = file.read(header_size) if 2 <= header_size <= min(size - 8, 100_000_000) else b""
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    if not raw:
        raise ValueError(f"{path} is no safetensors file (a git-lfs pointer or a broken download?)")
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is no safetensors file (its header does not parse)") from None
    try:
        header.pop("__metadata__", None)
        places = sorted(tuple(entry["data_offsets"]) for entry in header.values())
        fitting = all(_fits(entry) for entry in header.values())
        end = places[-1][1] if places else 0
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise ValueError(f"{path} is no safetensors file (its header lists no tensors)") from None
    if size != 8 + header_size + end:
        raise ValueError(
            f"{path} is truncated or altered: {size} bytes where its header promises {8 + header_size + end}"
        )
    if not fitting or [0, *(stop for _, stop in places)][: len(places)] != [start for start, _ in places]:
        raise ValueError(f"{path} is no safetensors file (the places of its tensors do not fit their shapes)")
    return header


def _fits(entry: Mapping[str, Any]) -> bool:
    """Whether a tensor of a header takes as many bytes as its shape and type say."""
    shape, (start, stop) = entry["shape"], entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, start, stop)):
        return False
    wanted = _BYTES.get(entry["dtype"])
    return wanted is None or math.prod(shape) * wanted == stop - start


def read_weights_header(folder: Path, stems: Sequence[str] = (TRANSFORMERS_STEM, DIFFUSERS_STEM)) -> dict[str, Any]:
    """Headers of one component's weights joined: of one .safetensors file, or of all the shards of an index.

    Args:
        stems: names that the file may have, without its ending; the first is the one that is asked for.

    Raises:
        ValueError: missing or not whole.
    """
    for stem in stems:
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if single.exists():
            return read_header(single)
        if index.exists():
            return _read_shards(index)
    raise ValueError(_instead_of_weights(folder, stems))


def _read_shards(index: Path) -> dict[str, Any]:
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise ValueError(f"{index} does not say which weight is in which file (its weight_map)")
    header: dict[str, Any] = {}
    for shard in sorted(set(placed.values())):
        if not (index.parent / shard).exists():
            raise ValueError(f"{index.parent / shard} is missing (a shard of {index.name})")
        header |= read_header(index.parent / shard)
    return header


def _instead_of_weights(folder: Path, stems: Sequence[str]) -> str:
    """What to say of a folder without the weights file: what lies there in its place, and what to do."""
    for stem in stems:
        for shard in sorted(folder.glob(f"{stem}-?????-of-?????.safetensors")):
            return f"{folder / stem}.safetensors.index.json is missing ({shard.name} is one of its shards)"
    for stem in stems:  # model.fp16.safetensors, model.fp16-00001-of-00002..., model-00001-of-00002.fp16...
        for variant in sorted([*folder.glob(f"{stem}.*.safetensors"), *folder.glob(f"{stem}-*.*.safetensors")]):
            whole = variant.name.count("-of-") == 0
            return f"{variant} is a variant, which is not read: get {stem}.safetensors instead" + (
                f", or rename it to {stem}.safetensors" if whole else ""
            )
    for stem in (*stems, "pytorch_model"):  # the last is transformers' name for a pickle
        for pickled in sorted([*folder.glob(f"{stem}.bin"), *folder.glob(f"{stem}*.bin.index.json")]):
            return f"{pickled} is a pickle, which is not read: get the .safetensors instead"
    return f"{folder / stems[0]}.safetensors is missing"


def check_weights(
    header: Mapping[str, Any], expected: Mapping[str, Shape], folder: Path, *, exact: bool = False
) -> None:
    """Compare weights, by their header, with the shapes that they should have; with `exact` nothing may lie beside.

    Raises:
        ValueError: what `refuse_misfits` says.
    """
    found = {name: tuple(entry["shape"]) for name, entry in header.items()}
    refuse_misfits(
        folder,
        missing=[name for name in expected if name not in found],
        mismatched=[
            (name, found[name], tuple(shape))
            for name, shape in expected.items()
            if name in found and found[name] != tuple(shape)
        ],
        unexpected=[name for name in found if name not in expected] if exact else (),
    )


def refuse_misfits(
    folder: Path,
    *,
    missing: Iterable[str],
    mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]] = (),
    unexpected: Iterable[str] = (),
) -> None:
    """Refuse a component whose weights do not fit its configuration; the libraries would put random numbers there.

    Args:
        mismatched: (name, shape in the file, shape by the configuration).

    Raises:
        ValueError: one line that names the folder and the first of them.
    """
    missing, mismatched, unexpected = sorted(missing), sorted(mismatched), sorted(unexpected)
    if missing:
        raise ValueError(f"{folder}: its weights lack {missing[0]}{_others(missing)}: another model's?")
    if mismatched:
        name, found, wanted = mismatched[0]
        raise ValueError(
            f"{folder}: {name} has shape {tuple(found)}, by its config.json {tuple(wanted)}{_others(mismatched)}: "
            "another model's weights?"
        )
    if unexpected:
        raise ValueError(
            f"{folder}: its weights hold {unexpected[0]}{_others(unexpected)}, for which its config.json has no place: "
            "another model's?"
        )


def _others(wrong: Sequence[Any]) -> str:
    return f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""


def check_pickle(path: Path) -> None:
    """Check that a file starts as torch's checkpoints do.

    Raises:
        ValueError: missing, or something else.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    if not start.startswith(_PICKLES):
        raise ValueError(f"{path} is no torch checkpoint (a git-lfs pointer, or text in place of weights?)")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A pickled state dict as plain tensors, on the CPU; one wrapped in {"params": ...} is unwrapped.

    Raises:
        ValueError: not readable, not a state dict, or more than tensors in it (running it could do anything).
    """
    check_pickle(path)
    import torch

    try:
        # Mapped where the format allows it: whoever only looks at names and shapes reads nothing large.
        with warnings.catch_warnings(action="ignore"):  # of a pickle's protocol: what is wrong is told below
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except Exception as error:  # torch raises whatever the broken pickle led to
        if "weights_only" in str(error).lower():
            raise ValueError(f"{path} holds more than tensors, and running it could do anything: refused") from None
        raise ValueError(f"{path} is no checkpoint ({shorten_error(error)})") from None
    state = state.get("params", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} is no state dict")
    return state


QUALITY = "pip install -e '.[quality]' first"  # pyiqa


IMAGE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def check_image_processor(folder: Path) -> None:
    if not any((folder / name).is_file() for name in IMAGE_PROCESSORS):
        raise ValueError(f"{folder / IMAGE_PROCESSORS[0]} is missing")


def check_model_folder(folder: Path) -> None:
    require_folder(folder)
    read_json(folder / "config.json")
    read_weights_header(folder)
