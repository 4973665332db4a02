"""The formulas of a call's memory against what autograd keeps and what lives at a time, counted without data."""

from itertools import product
from unittest.mock import patch

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLQwenImage, SD3Transformer2DModel
from memory_count import kept_bytes
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dpdmd.methods.networks import recompute_blocks
from dpdmd.models import lora
from dpdmd.models.activation_memory import CallShape
from dpdmd.models.counted_memory import LiveStorages, as_on_cuda
from dpdmd.models.lora import Adapter
from dpdmd.models.registry import LAYOUTS
from dpdmd.models.sd35.activation_memory import call_memory
from dpdmd.models.sd35.family import SD35

ARCHITECTURES = {  # heads, width of a head, blocks, dual blocks, normed q and k
    "one dual of two": (2, 16, 2, 1, "rms_norm"),
    "no dual": (4, 16, 4, 0, "rms_norm"),
    "all dual": (4, 32, 3, 3, "rms_norm"),
    "q and k as they are": (4, 32, 2, 0, None),
}
SHAPES = [(1, 32, 20), (4, 16, 30), (2, 64, 87)]  # batch, latents a side, text tokens


def transformer(heads: int, head_width: int, blocks: int, dual: int, qk_norm: str | None) -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=64,
        num_layers=blocks,
        num_attention_heads=heads,
        attention_head_dim=head_width,
        caption_projection_dim=heads * head_width,
        joint_attention_dim=96,
        pooled_projection_dim=64,
        pos_embed_max_size=48,
        qk_norm=qk_norm,
        dual_attention_layers=tuple(range(dual)),
    )


def call(network: SD3Transformer2DModel, shape: tuple[int, int, int], bf16: bool) -> torch.Tensor:
    batch, side, tokens = shape
    dtype = torch.bfloat16 if bf16 else torch.float32
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
        return network(
            hidden_states=torch.randn(batch, 16, side, side),
            timestep=torch.full((batch,), 500.0),
            encoder_hidden_states=torch.randn(batch, tokens, 96, dtype=dtype),
            pooled_projections=torch.randn(batch, 64, dtype=dtype),
            return_dict=False,
        )[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_what_autograd_keeps_is_what_the_formula_says(name, bf16):
    """Unique storages, counted by saved_tensors_hooks, with none, one and all of the blocks recomputed."""
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_cuda():
        network = transformer(*ARCHITECTURES[name])
        family, blocks = SD35(torch.device("cpu"), torch.float32), len(network.transformer_blocks)
        for shape, recomputed in product(SHAPES, (0, 1, blocks)):
            recompute_blocks(network, family, str(recomputed))
            counted = kept_bytes(network, lambda shape=shape: call(network, shape, bf16))
            batch, side, tokens = shape
            memory = call_memory(network.config, CallShape(batch, 8 * side, 8 * side, tokens, bf16, True), 8)
            assert memory.kept(recomputed) == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_autograd_keeps_for_adapters_is_what_the_formula_says(name, bf16, dropout):
    """On a base in the compute type: what only frozen weights would need is not kept."""
    rank, before = 4, torch.get_default_dtype()
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_cuda():
        torch.set_default_dtype(torch.bfloat16 if bf16 else before)
        try:
            base = transformer(*ARCHITECTURES[name])
        finally:
            torch.set_default_dtype(before)
        adapter = Adapter(rank, float(rank), LAYOUTS["sd35"].lora_targets, dropout)
        # peft moves new layers to their base's device and type; tensors without data cannot be moved in place.
        with patch.object(nn.Module, "to", lambda module, *_, **__: module):
            _, student, _ = lora.share(base, adapter, adapter, 0)
        family, blocks = SD35(torch.device("cpu"), torch.float32), len(base.transformer_blocks)
        for shape, recomputed in product(SHAPES, (0, 1, blocks)):
            recompute_blocks(student, family, str(recomputed))
            batch, side, tokens = shape
            with student.dropping_out(0, 0, range(batch)):
                counted = kept_bytes(base, lambda shape=shape: call(student, shape, bf16))
            sizes = CallShape(batch, 8 * side, 8 * side, tokens, bf16, False, rank, dropout > 0)
            memory = call_memory(base.config, sizes, 8)
            assert memory.kept(recomputed) == pytest.approx(counted, rel=0.1)


def test_counting_without_data_gives_what_real_tensors_give():
    shape, real = SHAPES[0], transformer(*ARCHITECTURES["one dual of two"])
    with FakeTensorMode(allow_non_fake_inputs=True):
        fake = transformer(*ARCHITECTURES["one dual of two"])
        without_data = kept_bytes(fake, lambda: call(fake, shape, False))
    assert without_data == kept_bytes(real, lambda: call(real, shape, False)) > 0


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("recomputed", [0, 1, 3])
def test_the_most_that_lives_in_a_backward_pass_is_what_the_formula_says(bf16, recomputed):
    """Real sizes, since what works beside the graph is a few tensors; gradients of the weights are small here."""
    shape = (8, 64, 64)
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_cuda():
        network = transformer(8, 32, 3, 2, "rms_norm")
        recompute_blocks(network, SD35(torch.device("cpu"), torch.float32), str(recomputed))
        with LiveStorages([*network.parameters(), *network.buffers()]) as live:
            call(network, shape, bf16).float().mean().backward()
        with torch.no_grad(), LiveStorages([*network.parameters(), *network.buffers()]) as passing:
            call(network, shape, bf16)
    memory = call_memory(network.config, CallShape(8, 512, 512, 64, bf16, True), 8)
    assert memory.kept(recomputed) + memory.working(recomputed) == pytest.approx(live.peak, rel=0.1)
    assert memory.passing == pytest.approx(passing.peak, rel=0.1)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", ["sd35", "qwen_image"])
def test_decoding_takes_what_the_formula_says(family, bf16):
    layout, before = LAYOUTS[family], torch.get_default_dtype()
    config = layout.official["vae"]
    torch.set_default_dtype(torch.bfloat16 if bf16 else before)
    try:
        with FakeTensorMode(), torch.no_grad():
            if family == "sd35":
                vae, latents = AutoencoderKL(**config), torch.randn(1, 16, 64, 64)
                decode = vae.decode
            else:
                vae, latents = AutoencoderKLQwenImage(**config), torch.randn(1, 16, 1, 64, 64)
                decode = vae.decoder
            with LiveStorages(list(vae.parameters())) as live:
                decode(latents)
    finally:
        torch.set_default_dtype(before)
    assert layout.autoencoder.decode_bytes(config, 512 * 512, bf16) == pytest.approx(live.peak, rel=0.05)
