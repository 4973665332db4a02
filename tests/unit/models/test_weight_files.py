"""Files that hold weights: their shapes are read from headers, and a broken file gets a one-line error."""

import json
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dpdmd.models.weight_files import (
    NETWORK_FILES,
    UnreadableError,
    read_all_shapes,
    read_checkpoint,
    read_network,
    read_network_shapes,
    read_shapes,
)


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


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64])
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_weights_that_are_no_real_numbers_are_an_error(tmp_path, ending, kind):
    """The libraries convert them, so quantised weights without their scales would train to the end."""
    path = tmp_path / f"network{ending}"
    (save_file if ending == ".safetensors" else torch.save)({"a": torch.ones(2), "b": torch.ones(1).to(kind)}, path)
    for read in (read_network, read_network_shapes) + ((lambda *_: read_all_shapes([path])),) * (ending != ".pt"):
        with pytest.raises(ValueError, match=r"holds b as \w+; its weights must be in fp32, bf16 or fp16") as error:
            read(path, [])
        assert str(error.value).startswith(f"{path} ")


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_any_floating_type_and_buffers_that_count_are_read(path, kind):
    counts = {"embeddings.position_ids": torch.arange(3)[None], "bn.num_batches_tracked": torch.tensor(4)}
    save_file({"a": torch.ones(2).to(kind), **counts}, path)
    expected = {"a": (2,), "embeddings.position_ids": (1, 3), "bn.num_batches_tracked": ()}
    assert read_all_shapes([path]) == expected and read_network(path, []).keys() == expected.keys()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({0: torch.ones(1)}, "is no state dict of a network: it holds 0, where names of weights belong"),
        ({"a": torch.ones(2, 2).to_sparse()}, "holds a as a sparse tensor"),
        ({"a": torch.ones(2, device="meta")}, "holds a without its numbers"),
    ],
)
def test_a_checkpoint_of_something_else_than_named_dense_tensors_is_an_error(tmp_path, state, says):
    torch.save(state, tmp_path / "network.pt")
    with pytest.raises(ValueError) as error:
        read_network(tmp_path / "network.pt", [])
    assert str(error.value).startswith(f"{tmp_path / 'network.pt'} ") and says in str(error.value)


def test_pickles_that_could_run_code_are_rejected(tmp_path):
    torch.save({"params": {"weight": torch.ones(1)}, "extra": Path("x")}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="holds more than tensors: rejected"):
        read_checkpoint(tmp_path / "bad.pt")
    (tmp_path / "text.pt").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="no torch checkpoint"):
        read_checkpoint(tmp_path / "text.pt")


@pytest.mark.parametrize("ending", NETWORK_FILES)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net.", "module._orig_mod.net."])
def test_a_network_is_read_from_any_file_and_under_its_own_names(tmp_path, ending, prefix):
    weights = {"blocks.0.weight": torch.ones(2), "proj.weight": torch.zeros(3, 1)}
    path, state = tmp_path / f"network{ending}", {prefix + name: value for name, value in weights.items()}
    (save_file if ending == ".safetensors" else torch.save)(state, path)
    found = read_network(path, ["module", "net"])
    assert found.keys() == weights.keys() and torch.equal(found["proj.weight"], weights["proj.weight"])
    assert read_network_shapes(path, ["module", "net"]) == {"blocks.0.weight": (2,), "proj.weight": (3, 1)}


def test_only_a_prefix_of_all_names_is_removed(tmp_path):
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "some.pt")
    assert read_network_shapes(tmp_path / "some.pt", ["module"]).keys() == {"module.a", "b"}
    torch.save({"teacher.a": torch.ones(1)}, tmp_path / "other.pt")
    assert read_network_shapes(tmp_path / "other.pt", ["module"]).keys() == {"teacher.a"}
    torch.save({"blocks.0._orig_mod.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "compiled.pt")
    assert read_network_shapes(tmp_path / "compiled.pt", []).keys() == {"blocks.0.a", "b"}
