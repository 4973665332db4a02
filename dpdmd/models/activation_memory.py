"""Device memory of one network call beside weights and gradients. Imports neither torch nor diffusers.

SD3's formulas are in `sd35/activation_memory.py`, since they need no library; `counted_memory.py` counts the calls of
other families.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FP32, BF16 = 4, 2  # bytes of a number


@dataclass(frozen=True)
class CallShape:
    """The input and the arithmetic of a call.

    Attributes:
        batch: samples; a guided call has two rows for each.
        height, width: of the image, in pixels.
        text_tokens: of one prompt.
        bf16: the call computes in bf16 under autocast.
        casts: the weights are fp32 masters, so autocast makes bf16 copies of them.
        adapter_rank: rank of the LoRA adapters (on all linear layers of the blocks) if only these are trained.
        adapter_dropout: whether each adapter's layer keeps a dropped input and its mask.
    """

    batch: int
    height: int
    width: int
    text_tokens: int
    bf16: bool
    casts: bool
    adapter_rank: int | None = None
    adapter_dropout: bool = False

    @property
    def trained(self) -> bool:
        """Return whether the weights, or adapters of them, are trained."""
        return self.casts or self.adapter_rank is not None


@dataclass(frozen=True)
class CallMemory:
    """Bytes of one call beside weights and gradients.

    Attributes:
        blocks: what autograd keeps of each block until its backward pass, unless the block is recomputed.
        block_inputs: what is kept of each block if it is recomputed.
        outside: what is kept outside the blocks.
        shared: what is kept besides if any block is recomputed; below 0 if other parts are then recomputed too.
        backward: what the backward pass adds if no block is recomputed.
        recomputations: each block recomputed, and its gradients.
        passing: peak of a call without gradient.
        others: the largest part that is recomputed besides if any block is, and its gradients.
    """

    blocks: tuple[int, ...]
    block_inputs: tuple[int, ...]
    outside: int
    shared: int
    backward: int
    recomputations: tuple[int, ...]
    passing: int
    others: int = 0

    def kept(self, recomputed: int) -> int:
        """Return what autograd keeps until the backward pass if the first `recomputed` blocks are recomputed."""
        inputs = sum(self.block_inputs[:recomputed]) + (self.shared if recomputed else 0)
        return self.outside + inputs + sum(self.blocks[recomputed:])

    def working(self, recomputed: int) -> int:
        """Return what the backward pass adds to `kept`; it recomputes a block when the later blocks are free."""
        most, freed = max(self.backward, self.others if recomputed else 0), sum(self.blocks[recomputed:])
        for index in reversed(range(recomputed)):
            most = max(most, self.recomputations[index] - freed)
            freed += self.block_inputs[index]
        return most


def decode_bytes(config: Mapping[str, Any], pixels: int, bf16: bool) -> int:
    """Return the peak while an AutoencoderKL decodes one image.

    The peak is at full size, in the first residual block of the last level: its input, the input after the norm, and
    after SiLU, each with the channels of the level before.
    """
    widths = config["block_out_channels"]
    return 3 * widths[min(1, len(widths) - 1)] * pixels * (BF16 if bf16 else FP32)
