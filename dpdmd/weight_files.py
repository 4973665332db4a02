"""Files that hold weights, and the JSON beside them: told whole from broken by what little of them is read.

Imports neither torch nor diffusers, so a wrong file is told within a second.
"""

import json
from pathlib import Path
from typing import Any

_WEIGHTS = ("diffusion_pytorch_model", "model")
_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")  # torch's zip file, and its older bare pickle


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: missing, unreadable, or no JSON object; the message names the file.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def read_header(path: Path) -> dict[str, Any]:
    """Tensor name -> dtype, shape and data_offsets of a whole .safetensors file; the weights are not read.

    Catches truncated downloads, git-lfs pointers and text in place of weights.

    Raises:
        ValueError: the header does not parse or the data it promises is not there; the message names the file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            if not 2 <= header_size <= min(size - 8, 100_000_000):
                raise ValueError(f"{path} is no safetensors file (a git-lfs pointer or a broken download?)")
            header = json.loads(file.read(header_size))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(f"{path} is no safetensors file (its header does not parse)") from None
    try:
        header.pop("__metadata__", None)
        expected = 8 + header_size + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (AttributeError, KeyError, IndexError, TypeError):
        raise ValueError(f"{path} is no safetensors file (its header lists no tensors)") from None
    if size != expected:
        raise ValueError(f"{path} is truncated or altered: {size} bytes where its header promises {expected}")
    return header


def read_weights_header(folder: Path) -> dict[str, Any]:
    """Headers of one component's weights joined: of one .safetensors file, or of all the shards of an index.

    Raises:
        ValueError: missing or not whole.
    """
    for stem in _WEIGHTS:
        single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
        if single.exists():
            return read_header(single)
        if index.exists():
            header: dict[str, Any] = {}
            for shard in sorted(set(read_json(index).get("weight_map", {}).values())):
                if not (folder / shard).exists():
                    raise ValueError(f"{folder / shard} is missing (a shard of {index.name})")
                header |= read_header(folder / shard)
            return header
    for stem in _WEIGHTS:
        for pickled in (*folder.glob(f"{stem}.bin"), *folder.glob(f"{stem}*.bin.index.json")):
            raise ValueError(f"{pickled} is a pickle, which is not read: get the .safetensors instead")
    raise ValueError(f"{folder / _WEIGHTS[0]}.safetensors is missing")


def check_pickle(path: Path) -> None:
    """Check that a file starts as torch's checkpoints do.

    Raises:
        ValueError: missing, or something else.
    """
    try:
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
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except Exception as error:  # torch raises whatever the broken pickle led to
        if "weights_only" in str(error).lower():
            raise ValueError(f"{path} holds more than tensors, and running it could do anything: refused") from None
        raise ValueError(f"{path} is no checkpoint ({' '.join(str(error).split())[:120]})") from None
    state = state.get("params", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"{path} is no state dict")
    return state
