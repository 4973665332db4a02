"""Files that hold one network: pickles and .safetensors files, under the names of torch's wrappers or of a pipeline.

Imports no torch, which is loaded with a pickle.
"""

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpdmd.models.weight_files import FLOATS, Shape, check_pickle, read_shapes_of_weights, require_floats
from dpdmd.utils.error_lines import shorten_error

NETWORK_FILES = (".pt", ".pth", ".bin", ".safetensors")  # endings of files that may hold one network
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # torch adds them to names of weights


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return a pickled state dict as plain tensors, on the CPU; a dict of the form {"params": ...} is unwrapped.

    Raises:
        ValueError: the file is not readable, is no state dict, or holds more than tensors (which could run any code).
    """
    check_pickle(path)
    import torch

    try:
        # Memory-mapped if the format allows it: a caller that only uses names and shapes reads nothing large.
        with warnings.catch_warnings(action="ignore"):  # about a pickle's protocol; an error follows below
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except Exception as error:  # a broken pickle can raise anything
        if "weights_only" in str(error).lower():
            raise ValueError(f"{path} holds more than tensors: rejected, since unpickling can run any code") from None
        raise ValueError(f"{path} is no checkpoint ({shorten_error(error)})") from None
    state = state.get("params", state) if isinstance(state, dict) else state

    def holds_tensors(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(each, torch.Tensor) for each in value.values())

    if not holds_tensors(state):
        items = state.items() if isinstance(state, dict) else ()
        parts = [name for name, value in items if value and holds_tensors(value)]
        advice = f"but holds {' and '.join(map(repr, parts[:5]))}: save that part alone" if parts else ""
        raise ValueError(f"{path} is no state dict, {advice or 'that is, tensors by their names; save one'}")
    for name, value in state.items():
        if not isinstance(name, str):
            raise ValueError(f"{path} is no state dict of a network: it holds {name!r}, where names of weights belong")
        if value.is_meta or value.layout != torch.strided:
            kind = "without its numbers (on the device meta)" if value.is_meta else "as a sparse tensor"
            raise ValueError(f"{path} holds {name} {kind}; save whole, dense weights")
    return state


def read_network(path: Path, prefixes: Sequence[str]) -> dict[str, Any]:
    """Return the weights of one network from a file of a type in NETWORK_FILES, as tensors on the CPU.

    Args:
        prefixes: first parts of names (`module`, ...) that are removed if all names have them, in any order.

    Raises:
        ValueError: the file is not readable, or holds something else.
    """
    if path.suffix.lower() != ".safetensors":
        state = read_checkpoint(path)
        types = {name: str(value.dtype).removeprefix("torch.") for name, value in state.items()}
        require_floats(path, types, FLOATS.values())
        return unwrapped(state, prefixes)
    read_shapes_of_weights(path)  # its errors are of one line
    from safetensors.torch import load_file

    return unwrapped(load_file(path), prefixes)


def read_network_shapes(path: Path, prefixes: Sequence[str]) -> dict[str, Shape]:
    """Return the shapes of the weights that `read_network` returns; the weights are not read.

    Raises:
        ValueError: as `read_network`.
    """
    if path.suffix.lower() == ".safetensors":
        return unwrapped(read_shapes_of_weights(path), prefixes)
    return {name: tuple(value.shape) for name, value in read_network(path, prefixes).items()}


def unwrapped(weights: dict[str, Any], prefixes: Sequence[str]) -> dict[str, Any]:
    """Return the weights under the network's own names, without what torch's wrappers and pipelines add to them."""
    plain = {".".join(part for part in name.split(".") if part not in WRAPPERS): weights[name] for name in weights}
    weights = plain if len(plain) == len(weights) else weights
    while len(first := {name.partition(".")[0] for name in weights}) == 1 and first <= set(prefixes):
        weights = {name.partition(".")[2]: value for name, value in weights.items()}
    return weights
