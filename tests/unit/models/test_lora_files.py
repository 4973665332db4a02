"""LoRA files of other programs: merged as peft merges them, whatever their metadata says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dpdmd.models.lora_files import LORA_WEIGHTS
from dpdmd.models.registry import LAYOUTS, family_class
from dpdmd.models.tensor_files import in_memory

RANKS = {
    f"transformer_blocks.{block}.attn.{name}": rank for block in (0, 1) for name, rank in (("to_q", 2), ("to_k", 3))
}
SETTINGS = {"r": 2, "lora_alpha": 5, "rank_pattern": {"to_k": 3}, "target_modules": list(RANKS)}


def write_lora(folder: Path, settings: dict[str, Any] | None) -> None:
    draw = torch.Generator().manual_seed(0)
    state = {}
    for layer, rank in RANKS.items():
        for half, shape in (("A", (rank, 32)), ("B", (32, rank))):
            state[f"transformer.{layer}.lora_{half}.weight"] = torch.randn(shape, generator=draw)
    metadata = {"format": "pt"}
    if settings is not None:
        metadata["lora_adapter_metadata"] = json.dumps({f"transformer.{key}": settings[key] for key in settings})
    save_file(state, folder / LORA_WEIGHTS, metadata)


@pytest.mark.parametrize(
    "settings",
    [
        None,
        SETTINGS,
        SETTINGS | {"alpha_pattern": {"to_q": 7, "1.attn.to_k": 11}},
        SETTINGS | {"alpha_pattern": {r"transformer_blocks\.0\.attn\..*": 7}},
        SETTINGS | {"use_rslora": True},
        {key: SETTINGS[key] for key in SETTINGS if key != "lora_alpha"},  # peft's own alpha is 8
    ],
)
def test_a_merged_layer_is_pefts(tiny_pipeline, tmp_path, settings):
    write_lora(tmp_path, settings)
    family = family_class("sd35")(torch.device("cpu"), torch.float32)
    network = family.load_network(tiny_pipeline, torch.float32)
    expected = LAYOUTS["sd35"].weight_shapes(tiny_pipeline, "transformer")
    family.check_lora(tmp_path, expected)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    merged = family.merge_lora(in_memory(state), tmp_path)
    family.load_lora(network, tmp_path)
    network.fuse_lora()
    for layer in RANKS:
        ours, theirs = merged[f"{layer}.weight"].read(), network.get_submodule(layer).base_layer.weight
        torch.testing.assert_close(ours, theirs)
        assert not torch.allclose(ours, state[f"{layer}.weight"], atol=0.1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            SETTINGS | {"of_a_later_peft": 1},
            "peft cannot use the metadata of .*unexpected keyword argument 'of_a_later_",
        ),
        (SETTINGS | {"rank_pattern": {}}, r"has transformer_blocks.0.attn.to_k in rank 3, but 2 by its metadata"),
        (SETTINGS | {"lora_alpha": "x"}, "peft cannot use the metadata of "),
    ],
)
def test_metadata_that_peft_cannot_use_is_an_error_before_anything_loads(tiny_pipeline, tmp_path, settings, says):
    write_lora(tmp_path, settings)
    family = family_class("sd35")(torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match=says) as error:
        family.check_lora(tmp_path, LAYOUTS["sd35"].weight_shapes(tiny_pipeline, "transformer"))
    assert str(tmp_path / LORA_WEIGHTS) in str(error.value)
