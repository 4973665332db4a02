"""Tensors that are read one at a time, and .safetensors files that are written one tensor at a time.

An export converts, merges and renames tens of gigabytes. In memory is never more than one tensor, with its parts.
"""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dpdmd.models.weight_files import Shape, find_weight_files

# safetensors' names of the types, in the order of their tensors in a file: large items first, so each lies aligned.
_TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_BY_NAME = {name: dtype for dtype, name in _TYPES.items()}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that `read` returns, on the CPU; its type and shape are known before."""

    dtype: torch.dtype
    shape: Shape
    read: Callable[[], Tensor]

    def to(self, dtype: torch.dtype) -> "LazyTensor":
        """Return the tensor in another floating type; whole numbers stay as they are."""
        if self.dtype == dtype or not self.dtype.is_floating_point:
            return self
        return replace(self, dtype=dtype, read=lambda: self.read().to(dtype))

    def map(self, change: Callable[[Tensor], Tensor], shape: Sequence[int] | None = None) -> "LazyTensor":
        """Return `change` of the tensor, of the same type and of `shape`, else of the same shape."""
        return replace(self, shape=tuple(shape or self.shape), read=lambda: change(self.read()))


Weights = Mapping[str, LazyTensor]


def in_memory(state: Mapping[str, Tensor]) -> dict[str, LazyTensor]:
    """Return tensors that are already in memory."""
    return {
        name: LazyTensor(value.dtype, tuple(value.shape), lambda value=value: value) for name, value in state.items()
    }


def concatenated(parts: Sequence[LazyTensor]) -> LazyTensor:
    """Return the parts, alike but for their first dimension, as one tensor."""
    rows = sum(part.shape[0] for part in parts)
    return LazyTensor(parts[0].dtype, (rows, *parts[0].shape[1:]), lambda: torch.cat([part.read() for part in parts]))


def open_weights(folder: Path, stem: str) -> dict[str, LazyTensor]:
    """Return the weights of a component's file, or of all its shards, without reading them."""
    found: dict[str, LazyTensor] = {}
    for path in find_weight_files(folder, (stem,)):
        found |= open_tensors(path)
    return found


def open_tensors(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a whole .safetensors file without reading them."""

    def read(name: str) -> Tensor:
        # Opened for each tensor: closing the file also gives back the memory through which it was read.
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)

    found = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            part = file.get_slice(name)
            dtype, shape = _BY_NAME[part.get_dtype()], tuple(part.get_shape())
            found[name] = LazyTensor(dtype, shape, lambda name=name: read(name))
    return found


def file_head(tensors: Mapping[str, tuple[torch.dtype, Sequence[int]]]) -> tuple[bytes, int]:
    """Return what stands before the data in a .safetensors file of these tensors in this order, and the data's bytes.

    Args:
        tensors: name -> type, shape.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
        header[name] = {"dtype": _TYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    return struct.pack("<Q", len(text)) + text, end


def write_tensors(path: Path, weights: Weights) -> None:
    """Write a .safetensors file, tensor by tensor, with the bytes that safetensors itself writes.

    Raises:
        OSError: the file cannot be written.
        ValueError: a finite tensor is infinite in its new type.
    """
    types = list(_TYPES)
    order = sorted(weights, key=lambda name: (types.index(weights[name].dtype), name))
    head, _ = file_head({name: (weights[name].dtype, weights[name].shape) for name in order})
    with path.open("wb") as file:
        file.write(head)
        for name in order:
            file.write(_bytes_of(name, weights[name].read()))


def _bytes_of(name: str, value: Tensor) -> memoryview:
    if value.dtype == torch.float16 and not value.isfinite().all():
        raise ValueError(f"{name} has values that are infinite in fp16; give --dtype bf16 or fp32")
    return value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
