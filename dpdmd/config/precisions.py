"""The precisions of frozen weights: `--base_precision` and `--text_encoder_precision`. Imports nothing heavy."""

import math
from dataclasses import dataclass
from importlib.util import find_spec

UNQUANTIZED = "bf16"  # weights in the type of the computation, which is fp32 without --bf16
FP8, INT8, NF4 = "fp8", "int8", "nf4"
PRECISIONS = (UNQUANTIZED, FP8, INT8, NF4)
NF4_BLOCK = 64  # numbers that share a scale; bitsandbytes' default
SCALE_BYTES = 4  # scales are fp32


def check_installed(flag: str, precision: str) -> None:
    """Check that the package of a precision is there.

    Raises:
        ValueError: it is missing.
    """
    if precision == NF4 and find_spec("bitsandbytes") is None:
        raise ValueError(
            f"--{flag} {precision}: the package bitsandbytes is not installed; pip install -e '.[memory]', or give "
            f"{INT8}"
        )


@dataclass(frozen=True)
class Precisions:
    """The precisions of a model's frozen weights, each one of PRECISIONS.

    Attributes:
        base: of the network, if only adapters beside it are trained.
        text_encoders: of all text encoders.
    """

    base: str = UNQUANTIZED
    text_encoders: str = UNQUANTIZED

    def described(self, dtype: str) -> str:
        """Return the type of the computation, and how the weights behind it are quantised, for the key of a cache."""
        parts = {"base": self.base, "text encoders": self.text_encoders}
        return dtype + "".join(f", {name} in {value}" for name, value in parts.items() if value != UNQUANTIZED)


def bytes_of_linear(precision: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a quantised weight [outputs, inputs] with its scales.

    fp8 and int8 have one scale for each output, nf4 one for each block of 64 numbers.
    """
    numbers = math.prod(shape)
    if precision == NF4:
        return math.ceil(numbers / 2) + SCALE_BYTES * math.ceil(numbers / NF4_BLOCK)
    return numbers + SCALE_BYTES * shape[0]
