"""Quantised linear layers against closed forms, and against linear layers with the dequantised weights."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dpdmd.config.precisions import FP8, INT8, NF4, UNQUANTIZED, Precisions, bytes_of_linear
from dpdmd.models import quantization
from dpdmd.models.quantization import QuantizedLinear, dequantize, quantize, quantize_layers
from dpdmd.models.sd35.family import SD35

CPU = torch.device("cpu")
NEEDS_BITSANDBYTES = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="pip install -e '.[memory]'")
QUANTIZED = [FP8, INT8, pytest.param(NF4, marks=NEEDS_BITSANDBYTES)]
# arXiv 2305.14314, appendix E
NF4_CODES = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0]
NF4_CODES += [0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def layer_of(precision: str, dtype: torch.dtype = torch.float32) -> tuple[QuantizedLinear, nn.Linear]:
    """Return a quantised layer, and a linear layer with its dequantised weight."""
    quantized = QuantizedLinear(draw(24, 64), draw(24, seed=1), precision, dtype, CPU)
    plain = nn.Linear(64, 24, dtype=dtype).requires_grad_(False)
    plain.weight.copy_(quantized.weight)
    plain.bias.copy_(quantized.bias)
    return quantized, plain


def test_int8_rounds_each_output_to_255_even_steps():
    weight = draw(24, 64)
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    found = dequantize(quantize(weight, INT8), weight.shape, torch.float32)
    torch.testing.assert_close(found, (weight / step).round() * step)
    assert ((found - weight).abs() <= step * 0.5001).all()


def test_fp8_keeps_three_bits_of_each_number():
    """The largest number of an output is exact; another one is off by at most 2^-4, or half a step of 2^-9 x scale."""
    weight = draw(24, 64)
    scale = weight.abs().amax(dim=1, keepdim=True) / 448
    found = dequantize(quantize(weight, FP8), weight.shape, torch.float32)
    assert ((found - weight).abs() <= torch.maximum(weight.abs() / 16, scale * 2**-10) * 1.0001).all()
    assert (found - weight).abs().max() > weight.abs().max() / 64


@NEEDS_BITSANDBYTES
def test_nf4_gives_each_number_the_nearest_of_16_values_of_its_block():
    weight, codes = draw(25, 96), torch.tensor(NF4_CODES)  # a block spans two rows, and the last one is half empty
    blocks = F.pad(weight.flatten(), (0, 32)).reshape(-1, 64)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    nearest = codes[(blocks[..., None] / scale[..., None] - codes).abs().argmin(dim=-1)] * scale
    found = dequantize(quantize(weight, NF4), weight.shape, torch.float32)
    torch.testing.assert_close(found, nearest.flatten()[: weight.numel()].reshape(weight.shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_weight_of_zeros_and_one_that_is_not_finite(precision):
    zeros = torch.zeros(2, 64)
    assert torch.equal(dequantize(quantize(zeros, precision), zeros.shape, torch.float32), zeros)
    for value in (torch.inf, torch.nan):
        zeros[1, 3] = value
        with pytest.raises(ValueError, match="not finite"):
            quantize(zeros, precision)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_weight_takes_the_bytes_of_the_estimate(precision):
    weight = quantize(draw(24, 192), precision)
    assert weight.values.nbytes + weight.scales.nbytes == bytes_of_linear(precision, (24, 192))


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("precision", QUANTIZED)
def test_output_and_gradient_are_those_of_the_dequantised_weight(precision, autocast):
    """To the bit: the same product of the same numbers."""
    pair, inputs = layer_of(precision, torch.bfloat16 if autocast else torch.float32), draw(2, 5, 64, seed=2)
    results = []
    for layer in pair:
        x = inputs.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = layer(x)
        y.float().square().sum().backward()
        results.append((y.detach(), x.grad))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))
    assert results[0][0].dtype == (torch.bfloat16 if autocast else torch.float32)


@pytest.mark.parametrize("precision", QUANTIZED)
def test_the_gradient_of_an_adapter_below_a_quantised_layer_in_closed_form(precision):
    """L = c . W2 (W1 + B A) x: dL/dB = W2^T c (A x)^T and dL/dA = B^T W2^T c x^T, with the dequantised W2."""
    below, above = (QuantizedLinear(draw(64, 64, seed=n), None, precision, torch.float32, CPU) for n in (1, 2))
    a, b = draw(4, 64, seed=3).requires_grad_(), draw(64, 4, seed=4).requires_grad_()
    x, c = draw(64, seed=5), draw(64, seed=6)
    (above(below(x) + b @ (a @ x)) @ c).backward()
    reached = above.weight.T @ c
    torch.testing.assert_close(b.grad, torch.outer(reached, a.detach() @ x))
    torch.testing.assert_close(a.grad, torch.outer(b.detach().T @ reached, x))


@pytest.mark.parametrize("precision", QUANTIZED)
def test_autograd_keeps_no_dequantised_weight(precision):
    layer, kept = layer_of(precision, torch.bfloat16)[0], []
    x = draw(3, 64).bfloat16().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        layer(x)
    own = {layer.values.data_ptr(), layer.scales.data_ptr()}
    assert {value.data_ptr() for value in kept} == own


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_compiled_layer_is_one_graph_with_the_same_gradient(precision):
    layer = layer_of(precision)[0]
    results = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        x = draw(3, 64).requires_grad_()
        y = function(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_linear_layers_of_blocks_alone_are_quantised():
    block = nn.ModuleDict({"to_q": nn.Linear(8, 8), "norm": nn.LayerNorm(8), "table": nn.Embedding(4, 8)})
    network = nn.ModuleDict({"blocks": nn.ModuleList([block]), "embedder": nn.Linear(8, 8)})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quantize_layers(network, before.__getitem__, ["blocks."], INT8, torch.float32, CPU)
    assert [name for name, layer in network.named_modules() if isinstance(layer, QuantizedLinear)] == ["blocks.0.to_q"]
    assert F.mse_loss(network["blocks"][0]["to_q"].weight, before["blocks.0.to_q.weight"]) < 1e-5
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name != "blocks.0.to_q.weight")


def test_keys_of_caches_stay_as_they_were_without_quantisation():
    assert Precisions(UNQUANTIZED, UNQUANTIZED).described("torch.bfloat16") == "torch.bfloat16"
    assert Precisions(INT8, NF4).described("x") == "x, base in int8, text encoders in nf4"


def test_a_network_with_a_number_that_is_not_finite_is_one_line(copied):
    folder = copied("sd35")
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["transformer_blocks.1.attn.to_k.weight"][3, 4] = torch.inf
    save_file(weights, path)
    with pytest.raises(
        ValueError, match=r"transformer: transformer_blocks\.1\.attn\.to_k\.weight holds a number that is"
    ):
        SD35(CPU, torch.float32, Precisions(INT8)).load_network(folder, torch.float32)
    weights["transformer_blocks.1.attn.to_k.weight"] = weights["transformer_blocks.1.attn.to_k.weight"][:, :-1].clone()
    save_file(weights, path)
    with pytest.raises(ValueError, match="has shape"):
        SD35(CPU, torch.float32, Precisions(INT8)).load_network(folder, torch.float32)


@pytest.mark.parametrize("precision", [FP8, INT8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_dequantises_rows_as_the_whole(precision, dtype, monkeypatch):
    monkeypatch.setattr(quantization, "CPU_CHUNK", 3 * 8)  # three rows of eight numbers, and two at the end
    weight = quantize(torch.randn(11, 8), precision)
    whole = (weight.values.float() * weight.scales).to(dtype)
    assert torch.equal(dequantize(weight, (11, 8), dtype), whole)
