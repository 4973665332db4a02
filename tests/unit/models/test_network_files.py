"""Files that hold one network: any ending, any wrapper's names, and nothing but floating-point tensors."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dpdmd.models.network_files import NETWORK_FILES, read_checkpoint, read_network, read_network_shapes
from dpdmd.models.weight_files import read_all_shapes


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
def test_weights_of_any_floating_type_and_buffers_that_count_are_read(tmp_path, kind):
    path = tmp_path / "model.safetensors"
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
