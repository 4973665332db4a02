"""Files that hold weights: their shapes are read from headers, and a broken file gets a one-line error."""

import json
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dpdmd.models.weight_files import UnreadableError, read_shapes


def tensors(**entries: tuple[str, list, list]) -> dict:
    return {
        name: {"dtype": kind, "shape": shape, "data_offsets": place} for name, (kind, shape, place) in entries.items()
    }


def write(path: Path, header: bytes, data: int) -> Path:
    """Write a safetensors file with this header and `data` zero bytes, which take no space on disk."""
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + data)
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.safetensors"


def test_shapes_are_those_of_the_tensors(path):
    """Scalars, empty tensors and bf16 tensors have a shape; metadata is no tensor."""
    state = {"scalar": torch.tensor(1.0), "none": torch.zeros(0, 3), "half": torch.zeros(2, 3, dtype=torch.bfloat16)}
    save_file(state, path, metadata={"format": "pt"})
    assert read_shapes(path) == {"scalar": (), "none": (0, 3), "half": (2, 3)}


def test_a_large_file_costs_its_header_alone(path):
    """Reading the shapes of a 5 GB file takes less than a second."""
    numbers = 2_500_000_000
    write(path, json.dumps(tensors(a=("BF16", [numbers], [0, 2 * numbers]))).encode(), 2 * numbers)
    start = time.perf_counter()
    assert read_shapes(path) == {"a": (numbers,)}
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize(
    "header",
    [
        tensors(a=("F32", [2], [0, 4])),
        tensors(a=("F32", [1], [0, 4]), b=("F32", [1], [0, 4])),
        tensors(a=("F32", [1], [4, 8])),
        tensors(a=("F32", [-1], [0, 4])),
        tensors(a=("F32", [1], [0, 4, 8])),
        {"a": 3},
    ],
)
def test_a_header_whose_tensors_do_not_fit_is_an_error(path, header):
    """Without this check, the error would come when the weights are loaded, minutes later."""
    data = max((entry["data_offsets"][1] for entry in header.values() if isinstance(entry, dict)), default=0)
    write(path, json.dumps(header).encode(), data)
    with pytest.raises(ValueError, match="is no safetensors file"):
        read_shapes(path)


WHOLE = json.dumps(tensors(a=("F32", [2], [0, 8]))).encode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is no safetensors file, or is truncated (header too small)"),
        (b"abc", "is no safetensors file, or is truncated (header too small)"),
        (b"<!DOCTYPE html><html>", "is no safetensors file, or is truncated (header too large)"),
        (struct.pack("<Q", 2**63) + b"{}", "is no safetensors file, or is truncated (header too large)"),
        (struct.pack("<Q", 2) + b"[]", "is no safetensors file, or is truncated (invalid JSON in header"),
        (struct.pack("<Q", 2) + b"\xff{", "is no safetensors file, or is truncated (invalid UTF-8 in header"),
        (struct.pack("<Q", 25_000) + b'{"a":' * 5000, "(invalid JSON in header: recursion limit exceeded"),
        (struct.pack("<Q", len(WHOLE)) + WHOLE + b"\0" * 7, "truncated (incomplete metadata, file not fully covered)"),
        (struct.pack("<Q", len(WHOLE)) + WHOLE + b"\0" * 9, "truncated (incomplete metadata, file not fully covered)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "but a git-lfs pointer: fetch the weights"),
        (b"PK\x03\x04" + b"\0" * 99, "is no safetensors file but a pickle"),
        (b"\x80\x02" + b"\0" * 99, "is no safetensors file but a pickle"),
    ],
)
def test_a_broken_file_is_named_as_what_it_is(path, content, says):
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_shapes(path)
    assert str(error.value).startswith(f"{path} is no safetensors file") and says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_folder_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be read \(No such file or directory\)"):
        read_shapes(tmp_path / "missing.safetensors")
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory\)"):
        read_shapes(tmp_path)


def test_a_file_without_permission_says_so(path, monkeypatch):
    """Root may read everything, so the test raises the error itself. safetensors says that there is no such file."""
    save_file({"a": torch.ones(1)}, path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UnreadableError, match=r"cannot be read \(Permission denied\)$"):
        read_shapes(path)
