"""Device memory of one call of an SD3Transformer2DModel. Imports neither torch nor diffusers.

The counts follow the blocks' arithmetic tensor by tensor, and tests/unit/training/test_memory_estimate.py compares them
with what autograd keeps. Attention is counted as SDPA's flash and efficient kernels keep it: q, k, v, the output and
one number a row, not the N x N matrix.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpdmd.models.activation_memory import BF16, FP32, CallMemory, CallShape


@dataclass(frozen=True)
class _Stream:
    """Bytes of one token in units of the width, in fp32 or under bf16 autocast, where norms compute in fp32.

    What a frozen factor multiplies need not be kept. If only adapters are trained (`frozen`), the modulation, the gates
    and the weights of the norms are such factors.
    """

    bf16: bool
    qk_norm: bool
    frozen: bool

    @property
    def number(self) -> int:
        return BF16 if self.bf16 else FP32

    @property
    def norm(self) -> int:
        """A LayerNorm's input (under autocast its fp32 copy), and its output, which the modulation keeps."""
        return FP32 if self.frozen else 2 * FP32

    @property
    def gated(self) -> int:
        """An output, which its gate keeps."""
        return 0 if self.frozen else self.number

    def attention(self, *, joint: bool, projected: bool = True) -> int:
        """From the modulated input to the projected output."""
        # Autocast casts the fp32 input anew for each of the three projections.
        inputs = 3 * BF16 if self.bf16 else FP32
        # q and k: as projected, as fp32 (the same tensor outside autocast), and normed.
        one = (BF16 if self.bf16 else 0) + (FP32 if self.frozen else 2 * FP32)
        normed = 2 * one if self.qk_norm else 0
        kernel = 4 * self.number  # q, k, v, output
        if not projected:
            return inputs + normed + kernel
        copied = self.number if joint or self.bf16 else 0  # the output, cut from the joint one or cast
        return inputs + normed + kernel + copied + self.gated

    @property
    def feed_forward(self) -> int:
        """The input, four times the width before and after GELU, and the output."""
        return (1 + 4 + 4) * self.number + self.gated

    @property
    def block(self) -> int:
        return 2 * self.norm + self.attention(joint=True) + self.feed_forward

    @property
    def last_text(self) -> int:
        """The text's part of the last block, which only reads the text."""
        return self.norm + self.attention(joint=True, projected=False)


def call_memory(config: Mapping[str, Any], shape: CallShape, vae_factor: int) -> CallMemory:
    """Return the memory of one call; a latent spans `vae_factor` pixels a side."""
    heads = config["num_attention_heads"]
    width = heads * config["attention_head_dim"]
    dual = set(config.get("dual_attention_layers") or ())
    patch = vae_factor * config["patch_size"]
    image = shape.batch * (shape.height // patch) * (shape.width // patch)
    text = shape.batch * shape.text_tokens
    rank = shape.adapter_rank or 0
    stream = _Stream(shape.bf16, config.get("qk_norm") is not None, frozen=rank > 0)
    cast = BF16 if shape.bf16 and shape.casts else 0
    # Masks have a byte a number. q, k and v keep an input each, as they do under autocast anyway.
    mask, inputs = (width, 0 if shape.bf16 else 2 * FP32 * width) if shape.adapter_dropout else (0, 0)
    modulation = shape.batch * width * stream.number  # one chunk of it
    # Numbers beside the width: means and deviations of the norms, a number a head and row of q, k and the kernel.
    beside = FP32 * (4 + 3 * heads)

    def block(index: int) -> int:
        """Activations, modulation of image and text in twelve chunks, and bf16 copies of fp32 weights."""
        size = (image + text) * (stream.block * width + beside + 6 * rank * stream.number) + 12 * modulation
        size += (image + text) * (9 * mask + inputs)  # of q, k, v, out, and 1 + 4 of the feed-forward
        size += 36 * rank * width * (BF16 if shape.bf16 else 0)  # the adapters: 8 + 8 squares in attention, 10 + 10
        if index in dual:  # a second attention, on the image alone, and three chunks more
            size += image * (stream.attention(joint=False) * width + FP32 * 3 * heads + 4 * rank * stream.number)
            size += image * (4 * mask + inputs)
            size += 3 * modulation + 8 * rank * width * (BF16 if shape.bf16 else 0)
        if index == config["num_layers"] - 1:  # only reads the text
            size -= text * (width * (stream.block - stream.last_text) + 6 * mask)
        return size + cast * _block_numbers(config, index)

    blocks = tuple(block(index) for index in range(config["num_layers"]))
    # Before and after the blocks: the latent and the text that come in, the last norm, and the output.
    in_patch = config["patch_size"] ** 2 * config["in_channels"]
    outside = image * (stream.norm * width + 2 * FP32)
    if not rank:
        outside += image * stream.number * (width + in_patch) + text * stream.number * config["joint_attention_dim"]
    # Two of time and text, the last norm's two, and the patches' in and out.
    outside += cast * (4 * width * width + 2 * in_patch * width)
    tokens = (image + text) * width
    # Counted tensors that are alive (benchmarks/results): most in a dual block's second attention, or around GELU.
    alive = (31 if dual else 29) if shape.bf16 else (53 if dual else 49)
    return CallMemory(
        blocks=blocks,
        block_inputs=(tokens * stream.number,) * len(blocks),
        outside=outside,
        shared=4 * modulation,
        backward=tokens * (10 if shape.bf16 else 8),
        recomputations=(max(blocks) + (tokens * 4 if shape.bf16 else 0),) * len(blocks),
        passing=tokens * alive,
    )


def _block_numbers(config: Mapping[str, Any], index: int) -> int:
    """Return the numbers in a block's matrices: modulation 6 + 6, attention 4 + 4, feed-forward 8 + 8 squared widths.

    A dual block has 3 more of modulation and 4 of attention. The last block's text has 4 less of modulation, no output
    and no feed-forward.
    """
    squares = 36 + (7 if index in (config.get("dual_attention_layers") or ()) else 0)
    squares -= 4 + 1 + 8 if index == config["num_layers"] - 1 else 0
    return squares * (config["num_attention_heads"] * config["attention_head_dim"]) ** 2
