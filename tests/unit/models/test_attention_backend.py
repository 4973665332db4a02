"""`--attention_backend`: the same attention through diffusers' dispatcher, in every attention layer."""

import re
from contextlib import nullcontext

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor

from dpdmd.models.attention_backend import check_attention_backend, use_attention_backend
from dpdmd.models.compilation import compile_blocks
from dpdmd.models.registry import LAYOUTS, family_class

CPU = torch.device("cpu")


@pytest.fixture(params=LAYOUTS)
def networks(request, tiny_folder):
    """Return (family, its network in its own attention, the same for a backend, the folder)."""
    family, folder = family_class(request.param)(CPU, torch.float32), tiny_folder(request.param)
    return family, *(family.load_network(folder, torch.float32) for _ in range(2)), folder


def processors(network) -> list:
    """Return the processor of every attention layer."""
    return [layer.processor for layer in network.modules() if hasattr(layer, "processor")]


def predictions(family, network, folder) -> tuple[Tensor, Tensor]:
    """Return a prediction and the gradient of its square, of fixed random inputs."""
    encoder = family.load_text_encoder(folder, 32)
    text = encoder.encode(["a red circle", "a large blue square and a small cyan cross on a grey background"])
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(2, family.layout.latent_channels(network.config), 8, 8, generator=draw).requires_grad_()
    prediction = family.predict(network, z, torch.tensor([0.9, 0.3]), text)
    (gradient,) = torch.autograd.grad(prediction.square().mean(), z)
    return prediction.detach(), gradient


def test_native_is_the_networks_own_attention_to_the_bit(networks):
    family, own, backend, folder = networks
    use_attention_backend(backend, "native", torch.float32)
    for each in processors(backend):
        assert AttentionBackendName.NATIVE in (vars(each).get("backend"), vars(each).get("_attention_backend"))
    assert processors(backend)
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(predictions(family, backend, folder), predictions(family, own, folder), strict=True)
    )
    assert backend.state_dict().keys() == own.state_dict().keys()


def test_every_attention_layer_uses_the_backend(networks, monkeypatch):
    """`_native_math` gives the same numbers but for the last bits, and is called once for each layer."""
    family, own, backend, folder = networks
    name, calls = AttentionBackendName._NATIVE_MATH, []
    math = _AttentionBackendRegistry._backends[name]

    def counted(*arguments, **named):
        calls.append(1)
        return math(*arguments, **named)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, counted)
    use_attention_backend(backend, "_native_math", torch.float32)
    ours, theirs = predictions(family, backend, folder), predictions(family, own, folder)
    assert len(calls) == len(processors(backend))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_under_bf16_a_backend_gets_one_type(networks, monkeypatch):
    """The norms of q and k leave fp32 under autocast, which kernels other than torch's do not take."""
    of_fp32, _, network, folder = networks
    family = type(of_fp32)(CPU, torch.bfloat16)
    types = set()
    native = _AttentionBackendRegistry._backends[AttentionBackendName.NATIVE]

    def watched(query, key, value, **named):
        types.update((query.dtype, key.dtype, value.dtype))
        return native(query, key, value, **named)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.NATIVE, watched)
    use_attention_backend(network, "native", torch.bfloat16)
    predictions(family, network, folder)
    assert types == {torch.bfloat16}


def test_compiled_blocks_keep_the_backend_in_one_graph(networks):
    """`compile_blocks` asks for one graph of each block: a processor that breaks the graph would raise."""
    family, own, backend, folder = networks
    use_attention_backend(backend, "_native_math", torch.float32)
    compile_blocks(backend, family.block_classes, backend="eager")
    for one, other in zip(predictions(family, backend, folder), predictions(family, own, folder), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_layer_that_does_more_than_attention_is_an_error(tiny_pipeline):
    network = family_class("sd35")(CPU, torch.float32).load_network(tiny_pipeline, torch.float32)
    next(m for m in network.modules() if type(m).__name__ == "Attention").residual_connection = True
    with pytest.raises(ValueError, match=r"--attention_backend native: not possible with layer .*attn"):
        use_attention_backend(network, "native", torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash"])
def test_backends_of_a_cpu_pass(backend, dtype):
    active = _AttentionBackendRegistry.get_active_backend()[0]
    check_attention_backend(backend, CPU, dtype)
    assert _AttentionBackendRegistry.get_active_backend()[0] == active


@pytest.mark.parametrize(("backend", "says"), [("native", None), ("_native_flash", "does not work here (`attn_mask`")])
def test_a_network_with_a_mask_needs_a_backend_that_takes_one(backend, says):
    with nullcontext() if says is None else pytest.raises(ValueError, match=re.escape(says)):
        check_attention_backend(backend, CPU, torch.float32, masked=True)


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (lambda query, key, value: query.detach(), "does not work here (it has no gradient, so it cannot train)"),
        (lambda query, key, value: value + 0 * query * key, "its result is not torch's own attention's; give another"),
        (lambda query, key, value: 1 / 0, "does not work here (division by zero); give another"),
    ],
)
def test_a_backend_that_cannot_train_is_an_error(monkeypatch, kernel, says):
    """As sage, which has no backward pass."""
    monkeypatch.setattr(attention_dispatch, "_check_attention_backend_requirements", lambda backend: None)
    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.SAGE, kernel)
    monkeypatch.setitem(
        _AttentionBackendRegistry._supported_arg_names, AttentionBackendName.SAGE, {"query", "key", "value"}
    )
    with pytest.raises(ValueError) as error:
        check_attention_backend("sage", CPU, torch.float32)
    assert says in str(error.value)
