"""Weight-only quantisation of the linear layers of frozen networks (`--base_precision`, `--text_encoder_precision`).

A layer keeps its weight in fp8, int8 or nf4 and dequantises it in every forward and backward pass. So one weight at a
time is in the type of the computation, and outputs and gradients are those of a linear layer with the dequantised
weight, to the bit. docs/memory.md says why diffusers' own quantised layers do not serve here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpdmd.config.precisions import FP8, INT8, NF4, NF4_BLOCK
from dpdmd.models.layout import in_numbered_block
from dpdmd.models.noise_schedule import Predictor, Schedule
from dpdmd.models.tensor_files import Weights

FP8_MAX, INT8_MAX = 448.0, 127.0  # largest values of e4m3 and of a symmetric int8
TINY = torch.finfo(torch.float32).tiny
CPU_CHUNK = 2**18  # numbers that a CPU dequantises at a time, so that they stay in its cache
BASE_LAYER = ".base_layer"  # what peft adds to the name of a layer that has adapters


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantised weight [N, K].

    Attributes:
        values: [N, K] in fp8 or int8, or NK / 2 bytes of nf4.
        scales: fp32, [N, 1], or of nf4 one for each block.
    """

    values: Tensor
    scales: Tensor


def quantize(weight: Tensor, precision: str) -> QuantizedWeight:
    """Quantise a weight [N, K]: fp8 and int8 with one scale for each output, nf4 with one for each 64 numbers.

    nf4: Dettmers et al., arXiv 2305.14314, by bitsandbytes.

    Raises:
        ValueError: a number is not finite.
    """
    weight = weight.float()
    largest = weight.abs().amax(dim=1, keepdim=True)
    if not largest.isfinite().all():
        raise ValueError("holds a number that is not finite")
    if precision == NF4:
        from bitsandbytes.functional import quantize_4bit

        values, state = quantize_4bit(weight.contiguous(), blocksize=NF4_BLOCK, quant_type=NF4)
        return QuantizedWeight(values, state.absmax)
    if precision == FP8:
        scales = (largest / FP8_MAX).clamp_min(TINY)
        return QuantizedWeight((weight / scales).to(torch.float8_e4m3fn), scales)
    assert precision == INT8, precision
    scales = (largest / INT8_MAX).clamp_min(TINY)
    return QuantizedWeight((weight / scales).round().to(torch.int8), scales)


def dequantize(weight: QuantizedWeight, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return the weight [N, K]: values x scales in fp32, rounded to `dtype`."""
    if weight.values.dtype == torch.uint8:
        # As one row: on a CPU, bitsandbytes 0.50 is wrong for rows that are no whole number of blocks.
        flat = torch.ops.bitsandbytes.dequantize_4bit.default(
            weight.values, weight.scales, NF4_BLOCK, NF4, [1, math.prod(shape)], dtype
        )
        return flat.reshape(shape)
    if weight.values.device.type != "cpu":
        return (weight.values.float() * weight.scales).to(dtype)
    # On a CPU most of the time would go into fresh memory for the whole weight in fp32: it takes some rows at a time.
    whole = torch.empty(shape, dtype=dtype)
    rows = max(1, CPU_CHUNK // shape[-1])
    for values, scales, out in zip(*(part.split(rows) for part in (weight.values, weight.scales, whole)), strict=True):
        out.copy_(values.float().mul_(scales))
    return whole


class _LinearOfQuantized(torch.autograd.Function):
    """x W^T + b with a quantised W; the backward pass dequantises W once more, and gives x its gradient alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, shape: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(values, scales)
        ctx.shape = shape
        return F.linear(x, dequantize(QuantizedWeight(values, scales), shape, x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        weight = dequantize(QuantizedWeight(*ctx.saved_tensors), ctx.shape, gradient.dtype)
        return gradient @ weight, None, None, None, None


class QuantizedLinear(nn.Linear):
    """A frozen linear layer with a quantised weight, which peft adapts like any linear layer.

    Attributes:
        original: reads the weight as it was before (`original_weights`); None for calls with the quantised weight.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: str, dtype: torch.dtype, device: torch.device):
        """Quantise `weight` [N, K] on the device; `dtype` is that of the bias, and of the weight for who reads it."""
        nn.Module.__init__(self)  # nn.Linear's would make a weight
        self.out_features, self.in_features = weight.shape
        self.dtype, self.original = dtype, None
        quantized = quantize(weight.to(device), precision)
        self.register_buffer("values", quantized.values)
        self.register_buffer("scales", quantized.scales)
        self.register_buffer("bias", None if bias is None else bias.to(device, dtype))

    @property
    def weight(self) -> Tensor:
        """The dequantised weight [N, K]: a new tensor each time."""
        return dequantize(QuantizedWeight(self.values, self.scales), self._shape, self.dtype)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        if self.original is not None:
            return F.linear(x.to(dtype), self.original().to(self.dtype).to(x.device, dtype), bias)
        return _LinearOfQuantized.apply(x.to(dtype), self.values, self.scales, bias, self._shape)


def is_quantized(name: str, layer: nn.Module, prefixes: Sequence[str] | None) -> bool:
    """Return whether quantisation changes a layer: a linear one in a block.

    Norms, embeddings of inputs, times and prompts, and final layers stay as they are: they hold few of the numbers, and
    every block's output depends on them.

    Args:
        prefixes: how the names of the blocks' layers begin; None for any numbered list.
    """
    inside = in_numbered_block(name) if prefixes is None else name.startswith(tuple(prefixes))
    return type(layer) is nn.Linear and inside


def quantize_layers(
    network: nn.Module,
    read: Callable[[str], Tensor],
    prefixes: Sequence[str] | None,
    precision: str,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Replace the linear layers of a network's blocks, one at a time, by quantised ones on the device.

    Args:
        read: name of a weight -> the weight.
        prefixes: as in `is_quantized`.

    Raises:
        ValueError: a weight holds a number that is not finite.
    """
    for path, layer in list(network.named_modules()):
        if is_quantized(path, layer, prefixes):
            bias = None if layer.bias is None else read(f"{path}.bias")
            try:
                quantized = QuantizedLinear(read(f"{path}.weight"), bias, precision, dtype, device)
            except ValueError as error:
                raise ValueError(f"{path}.weight {error}") from None
            network.set_submodule(path, quantized)


def quantized_layers(network: nn.Module) -> dict[str, QuantizedLinear]:
    """Return the quantised layers of a network, by their names without what adapters add."""
    found = {path: layer for path, layer in network.named_modules() if isinstance(layer, QuantizedLinear)}
    return {path.removesuffix(BASE_LAYER): layer for path, layer in found.items()}


@contextmanager
def original_weights(network: nn.Module, weights: Weights) -> Iterator[None]:
    """Run calls of a network with the weights from before its quantisation, each read from its file when it is needed.

    So a comparison needs no second network. Compiled blocks run without their graphs.
    """
    layers = quantized_layers(network)
    for name, layer in layers.items():
        layer.original = weights[f"{name}.weight"].read
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for layer in layers.values():
            layer.original = None


@torch.no_grad()
def guided_error(
    predict: Predictor, schedule: Schedule, grid: Tensor, eps: Tensor, network: nn.Module, weights: Weights
) -> float:
    """Return the relative error |v' - v| / |v| of a guided prediction on a quantised network.

    It is measured at two noise levels: at the start noise, and in the middle of the grid, with the noise added to the
    x0 that the unquantised network predicts from the start noise. The larger error counts.

    Args:
        predict: the guided network with prompts bound, for the batch of `eps`.
        grid: the teacher's sigmas, [N + 1].
        eps: start noise, [B, C, H, W].
        weights: as in `original_weights`.
    """
    start, middle = grid[:1], grid[len(grid) // 2 :][:1]
    z, errors = eps, []
    for sigma in (start, middle):
        with original_weights(network, weights):
            exact = predict(z, sigma.expand(len(z)))
        errors.append(((predict(z, sigma.expand(len(z))) - exact).norm() / exact.norm()).item())
        z = schedule.add_noise(schedule.to_x0(z, exact, sigma.expand(len(z))), eps, middle.expand(len(z)))
    return max(errors)
