"""Device memory of one network call, counted from a configuration: what autograd keeps, what is alive while it runs.

The counts follow the blocks' own arithmetic, tensor by tensor, and tests/test_memory_plan.py holds them against what
autograd keeps. Attention is counted as SDPA's flash and efficient kernels keep it: q, k, v, the output and a number a
row, not the N x N matrix. Imports neither torch nor diffusers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FP32, BF16 = 4, 2  # bytes of a number


@dataclass(frozen=True)
class CallShape:
    """What a call is made on.

    Attributes:
        batch: samples; a guided call makes two rows of each.
        height, width: of the image, in pixels.
        text_tokens: of one prompt.
        bf16: whether the call computes in bf16 under autocast.
        casts: whether its weights are fp32 masters, of which autocast then makes bf16 copies.
        adapter_rank: of the LoRA adapters (on all linear layers of the blocks) that alone are trained; None: all is.
    """

    batch: int
    height: int
    width: int
    text_tokens: int
    bf16: bool
    casts: bool
    adapter_rank: int | None = None


@dataclass(frozen=True)
class CallMemory:
    """Bytes of one call beside weights and gradients.

    Attributes:
        blocks: what autograd keeps of each block to its backward pass, unless it is recomputed.
        block_input: what is kept of a recomputed one.
        outside: what is kept beside the blocks.
        shared: what else is kept once, where a block is recomputed.
        backward: what the backward pass adds where none is.
        recomputation: one block recomputed, and its gradients.
        passing: most that is alive at a time in a call without gradient.
    """

    blocks: tuple[int, ...]
    block_input: int
    outside: int
    shared: int
    backward: int
    recomputation: int
    passing: int

    def kept(self, recomputed: int) -> int:
        """What autograd keeps to the backward pass where the first `recomputed` blocks are recomputed."""
        again = recomputed * self.block_input + (self.shared if recomputed else 0)
        return self.outside + again + sum(self.blocks[recomputed:])

    def working(self, recomputed: int) -> int:
        """What the backward pass adds to that: it reaches a recomputed block once the others' graphs are gone."""
        if not recomputed:
            return self.backward
        return max(self.backward, self.recomputation - sum(self.blocks[recomputed:]))


@dataclass(frozen=True)
class _Stream:
    """One token's bytes in units of the width, in fp32 or under bf16 autocast, where norms compute in fp32.

    What is multiplied by something frozen need not be kept: with adapters alone (`frozen`) the modulation, the gates
    and the weights of the norms are.
    """

    bf16: bool
    qk_norm: bool
    frozen: bool

    @property
    def number(self) -> int:
        return BF16 if self.bf16 else FP32

    @property
    def norm(self) -> int:
        """A LayerNorm's input (an fp32 copy of it under autocast) and output, which the modulation keeps."""
        return FP32 if self.frozen else 2 * FP32

    @property
    def gated(self) -> int:
        """An output, which the gate keeps."""
        return 0 if self.frozen else self.number

    def attention(self, *, joint: bool, projected: bool = True) -> int:
        """From the modulated input to the projected output."""
        # Autocast casts the fp32 input anew for each of the three projections.
        inputs = 3 * BF16 if self.bf16 else FP32
        # Of q and k: as projected, that in fp32 (the same tensor outside autocast), and normed.
        one = (BF16 if self.bf16 else 0) + (FP32 if self.frozen else 2 * FP32)
        normed = 2 * one if self.qk_norm else 0
        kernel = 4 * self.number  # q, k, v, output
        if not projected:
            return inputs + normed + kernel
        copied = self.number if joint or self.bf16 else 0  # the output, cut from the joint one or cast
        return inputs + normed + kernel + copied + self.gated

    @property
    def feed_forward(self) -> int:
        """Input, four times the width before and after GELU, and the output."""
        return (1 + 4 + 4) * self.number + self.gated

    @property
    def block(self) -> int:
        return 2 * self.norm + self.attention(joint=True) + self.feed_forward

    @property
    def last_text(self) -> int:
        """The last block only reads the text."""
        return self.norm + self.attention(joint=True, projected=False)


def sd3_call_memory(config: Mapping[str, Any], shape: CallShape, latent_pixels: int) -> CallMemory:
    """One call of an SD3Transformer2DModel on images whose latents are `latent_pixels` smaller a side."""
    heads = config["num_attention_heads"]
    width = heads * config["attention_head_dim"]
    dual = set(config.get("dual_attention_layers") or ())
    patch = latent_pixels * config["patch_size"]
    image = shape.batch * (shape.height // patch) * (shape.width // patch)
    text = shape.batch * shape.text_tokens
    rank = shape.adapter_rank or 0
    stream = _Stream(shape.bf16, config.get("qk_norm") is not None, frozen=rank > 0)
    cast = BF16 if shape.bf16 and shape.casts else 0
    modulation = shape.batch * width * stream.number  # one chunk of it
    # Numbers beside the width: means and deviations of the norms, a number a head and row of q, k and the kernel.
    beside = FP32 * (4 + 3 * heads)

    def block(index: int) -> int:
        """Activations, modulation of image and text in twelve chunks, and bf16 copies of what is fp32."""
        size = (image + text) * (stream.block * width + beside + 6 * rank * stream.number) + 12 * modulation
        size += 36 * rank * width * (BF16 if shape.bf16 else 0)  # the adapters: 8 + 8 squares in attention, 10 + 10
        if index in dual:  # a second attention, on the image alone, and three chunks more
            size += image * (stream.attention(joint=False) * width + FP32 * 3 * heads + 4 * rank * stream.number)
            size += 3 * modulation + 8 * rank * width * (BF16 if shape.bf16 else 0)
        if index == config["num_layers"] - 1:  # only reads the text
            size -= text * width * (stream.block - stream.last_text)
        return size + cast * _sd3_block_numbers(config, index)

    blocks = tuple(block(index) for index in range(config["num_layers"]))
    # Before and after the blocks: the latent and the text that come in, the last norm, what goes out.
    in_patch = config["patch_size"] ** 2 * config["in_channels"]
    outside = image * (stream.norm * width + 2 * FP32)
    if not rank:
        outside += image * stream.number * (width + in_patch) + text * stream.number * config["joint_attention_dim"]
    # Two of time and text, the last norm's two, and the patches' in and out.
    outside += cast * (4 * width * width + 2 * in_patch * width)
    tokens = (image + text) * width
    # By count of what is alive (benchmarks/results): most in a dual block's second attention, or around GELU.
    alive = (31 if dual else 29) if shape.bf16 else (53 if dual else 49)
    return CallMemory(
        blocks=blocks,
        block_input=tokens * stream.number,
        outside=outside,
        shared=4 * modulation,
        backward=tokens * (10 if shape.bf16 else 8),
        recomputation=max(blocks) + (tokens * 4 if shape.bf16 else 0),
        passing=tokens * alive,
    )


def _sd3_block_numbers(config: Mapping[str, Any], index: int) -> int:
    """Numbers in a block's matrices: modulation 6 + 6, attention 4 + 4, feed-forward 8 + 8 squares of the width.

    A dual block has 3 more of modulation and 4 of attention; the last one's text has 4 less, no output and no
    feed-forward.
    """
    squares = 36 + (7 if index in (config.get("dual_attention_layers") or ()) else 0)
    squares -= 4 + 1 + 8 if index == config["num_layers"] - 1 else 0
    return squares * (config["num_attention_heads"] * config["attention_head_dim"]) ** 2


def decode_bytes(config: Mapping[str, Any], pixels: int, bf16: bool) -> int:
    """Most that is alive while an AutoencoderKL decodes one image.

    At full size, in the last level's first residual block: its input, that normed, and after SiLU; as wide as the level
    below.
    """
    widths = config["block_out_channels"]
    return 3 * widths[min(1, len(widths) - 1)] * pixels * (BF16 if bf16 else FP32)
