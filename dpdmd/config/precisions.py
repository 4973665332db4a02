"""The precisions of frozen weights: `--base_precision` and `--text_encoder_precision`. Imports nothing heavy."""

import math

UNQUANTIZED = "bf16"  # weights in the type of the computation, which is fp32 without --bf16
FP8, INT8, NF4 = "fp8", "int8", "nf4"
PRECISIONS = (UNQUANTIZED, FP8, INT8, NF4)
NF4_BLOCK = 64  # numbers that share a scale; bitsandbytes' default
SCALE_BYTES = 4  # scales are fp32


def bytes_of_linear(precision: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a quantised weight [outputs, inputs] with its scales.

    fp8 and int8 have one scale for each output, nf4 one for each block of 64 numbers.
    """
    numbers = math.prod(shape)
    if precision == NF4:
        return math.ceil(numbers / 2) + SCALE_BYTES * math.ceil(numbers / NF4_BLOCK)
    return numbers + SCALE_BYTES * shape[0]
