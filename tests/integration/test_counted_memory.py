"""The memory of a call as it is counted without data: against what autograd keeps, what lives, and SD3's formulas."""

import pytest
import torch
from memory_count import kept_bytes

from dpdmd.methods.networks import recompute_blocks
from dpdmd.models.activation_memory import CallShape
from dpdmd.models.base import Family
from dpdmd.models.counted_memory import CPU, Call, LiveStorages, count_call, without_data
from dpdmd.models.registry import LAYOUTS, family_class
from dpdmd.models.sd35.activation_memory import call_memory as sd3_formula
from dpdmd.models.sd35.official import OFFICIAL

RANKS = {"whole": None, "LoRA": 4, "LoRA with dropout": 4}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def shape_of(family: Family, trained: str) -> CallShape:
    bf16, rank = family.compute_dtype == torch.bfloat16, RANKS[trained]
    return CallShape(4, 128, 128, 40, bf16, rank is None, rank, "dropout" in trained)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(
    ("trained", "dtype"), [("whole", "fp32"), ("whole", "bf16"), ("LoRA", "bf16"), ("LoRA with dropout", "bf16")]
)
def test_what_is_counted_is_what_a_whole_call_takes(name, trained, dtype, tiny_folder):
    """With none, one and all of the blocks recomputed. The peak is an upper bound, least exact where all is recomputed:
    what the last parts of a UNet kept is free when the first ones, which are the largest, are recomputed."""
    layout, folder = LAYOUTS[name], tiny_folder(name)
    family, config = family_class(name)(CPU, TYPES[dtype]), layout.network_config(folder)
    shape, factor = shape_of(family, trained), layout.read_vae_factor(folder)
    memory = count_call(family, config, shape, factor)
    for count in (0, 1, len(memory.blocks)):
        with without_data():
            call = Call.build(family, config, shape, factor)
            if count:
                recompute_blocks(call.caller, family, str(count))
            kept = kept_bytes(call.network, call)
            changed = [parameter for parameter in call.network.parameters() if parameter.requires_grad]
            for parameter in changed:
                parameter.grad = torch.zeros_like(parameter)
            with LiveStorages([*call.tensors(), *(parameter.grad for parameter in changed)]) as live:
                call().mean().backward()
        assert memory.kept(count) == pytest.approx(kept, rel=0.05)
        assert 0.97 * live.peak < memory.kept(count) + memory.working(count) < (1.4 if count else 1.1) * live.peak


@pytest.mark.parametrize("rank", [None, 64])
def test_the_count_of_sd35_medium_is_that_of_its_formulas(rank):
    family, shape = family_class("sd35")(CPU, torch.bfloat16), CallShape(4, 1024, 1024, 333, True, rank is None, rank)
    config = OFFICIAL["transformer"]
    ours, formula = count_call(family, config, shape, 8), sd3_formula(config, shape, 8)
    for count in (0, 12, 24):
        assert ours.kept(count) == pytest.approx(formula.kept(count), rel=0.005)
    for count in (0, 12):
        whole = [memory.kept(count) + memory.working(count) for memory in (ours, formula)]
        assert whole[0] == pytest.approx(whole[1], rel=0.05)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_call_without_gradient_takes_less(name, tiny_folder):
    layout, folder = LAYOUTS[name], tiny_folder(name)
    family, config = family_class(name)(CPU, torch.float32), layout.network_config(folder)
    shape, factor = shape_of(family, "whole"), layout.read_vae_factor(folder)
    memory = count_call(family, config, shape, factor)
    with without_data():
        call = Call.build(family, config, shape, factor)
        with torch.no_grad(), LiveStorages(call.tensors()) as live:
            call()
    assert memory.passing == live.peak < memory.kept(0) + memory.working(0)
