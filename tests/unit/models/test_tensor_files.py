"""Files that are written tensor by tensor are the files that safetensors writes."""

import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpdmd.models.tensor_files import LazyTensor, concatenated, in_memory, open_tensors, open_weights, write_tensors

STATE = {
    "b.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "a.half": torch.arange(3).half(),
    "a.brain": torch.arange(5).bfloat16() / 3,
    "z.number": torch.tensor(7),
    "a.empty": torch.zeros(0, 4),
    "a.eighth": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
    "b.eighth": torch.tensor([1.0, -2.0, 3.0]).to(torch.float8_e5m2),
    "é.short": torch.tensor([1, 2], dtype=torch.int8),
    "a.double": torch.tensor([1 / 3], dtype=torch.float64),
    "a.flags": torch.tensor([True, False]),
}


def test_the_bytes_are_those_of_safetensors(tmp_path):
    save_file(STATE, tmp_path / "theirs", metadata={"format": "pt"})
    write_tensors(tmp_path / "ours", in_memory(STATE))
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    write_tensors(tmp_path / "again", open_tensors(tmp_path / "theirs"))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_tensors_are_converted_changed_and_joined_when_they_are_read(tmp_path):
    lazy = in_memory(STATE)
    weights = {
        "brain": lazy["b.weight"].to(torch.bfloat16),
        "number": lazy["z.number"].to(torch.bfloat16),
        "joined": concatenated([lazy["b.weight"], lazy["b.weight"]]),
        "turned": lazy["b.weight"].map(torch.t, (5, 3)),
    }
    write_tensors(tmp_path / "x.safetensors", weights)
    found = load_file(tmp_path / "x.safetensors")
    b = STATE["b.weight"]
    expected = {"brain": b.bfloat16(), "number": STATE["z.number"], "joined": torch.cat([b, b]), "turned": b.T}
    assert all(torch.equal(found[name], value) for name, value in expected.items()) and found.keys() == expected.keys()


def test_shards_are_one_set_of_weights(tmp_path):
    parts = [dict(list(STATE.items())[:3]), dict(list(STATE.items())[3:])]
    for index, part in enumerate(parts):
        save_file(part, tmp_path / f"model-{index}.safetensors")
    placed = {name: f"model-{index}.safetensors" for index, part in enumerate(parts) for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {placed}}}'.replace("'", '"'))
    found = open_weights(tmp_path, "model")
    assert found.keys() == STATE.keys()
    assert all(
        torch.equal(found[name].read(), STATE[name]) and found[name].shape == STATE[name].shape for name in STATE
    )


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    alive = []

    def read(name: str) -> torch.Tensor:
        assert not [each for each in alive if each() is not None]
        value = torch.zeros(4)
        alive.append(weakref.ref(value))
        return value

    write_tensors(tmp_path / "x", {name: LazyTensor(torch.float32, (4,), lambda n=name: read(n)) for name in "abc"})
    assert len(alive) == 3


def test_values_beyond_fp16_are_an_error(tmp_path):
    lazy = in_memory({"a": torch.tensor([1e6])})["a"]
    with pytest.raises(ValueError, match="a has values that are infinite in fp16"):
        write_tensors(tmp_path / "x", {"a": lazy.to(torch.float16)})
