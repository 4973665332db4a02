"""Values of a family's layout that belong together: its guidance, its autoencoder, and the memory of weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpdmd.config.validation import shown
from dpdmd.models.activation_memory import decode_bytes
from dpdmd.utils.json_values import is_finite_number


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance as the family's own pipeline counts it.

    Attributes:
        formula: the guided prediction by the unconditional u, the conditional c and the scale s, in words.
        off: the scale at which the formula gives c, so that one branch is enough.
        null_prompt: the prompt of the unconditional branch.
        argument: what the pipeline calls the scale.
    """

    formula: str = "u + s (c - u)"
    off: float = 1.0
    null_prompt: str = ""
    argument: str = "guidance_scale"

    def rows(self, scale: float) -> int:
        """Return the rows of a network's batch that the guided prediction of one sample takes, 1 or 2."""
        return 1 if scale == self.off else 2

    def weakens(self, scale: float) -> str:
        """Return a sentence on a scale at which images follow prompts less than without guidance, else ""."""
        if scale >= self.off:
            return ""
        kind = "the prompts count for nothing" if scale <= self.off - 1 else "the prompts count less"
        return f"guidance {scale:g}: {kind}, since this model predicts {self.formula}; {self.off:g} is without guidance"


CLASSIFIER_FREE = Guidance()


def _check_scaling(config: Mapping[str, Any]) -> None:
    scale, shift = config.get("scaling_factor", 1.0), config.get("shift_factor")  # without an entry, the class's own
    if not is_finite_number(scale) or scale <= 0:
        raise ValueError(f"sets scaling_factor {shown(repr(scale))}, which must be a number above 0")
    for name in ("latents_mean", "latents_std"):
        if config.get(name) is not None:
            raise ValueError(f"sets {name}, which is not read: give an autoencoder with scaling_factor alone")
    if not (shift is None or is_finite_number(shift)):
        raise ValueError(f"sets shift_factor {shown(repr(shift))}, which must be a number, or null")


@dataclass(frozen=True)
class Autoencoder:
    """What the configuration of an autoencoder says about latents; the defaults are an AutoencoderKL's.

    Attributes:
        factor: pixels a side of one latent of the sampler.
        channels: channels of the sampler's latents.
        check: raises a ValueError if a value that decoding needs is wrong.
        decode_bytes: device memory of decoding one image, by (configuration, pixels, bf16).
    """

    factor: Callable[[Mapping[str, Any]], int] = lambda config: 2 ** (len(config["block_out_channels"]) - 1)
    channels: Callable[[Mapping[str, Any]], int] = lambda config: config.get("latent_channels", 4)
    check: Callable[[Mapping[str, Any]], None] = _check_scaling
    decode_bytes: Callable[[Mapping[str, Any], int, bool], int] = decode_bytes


AUTOENCODER_KL = Autoencoder()


@dataclass(frozen=True)
class WeightBytes:
    """The device memory of the weights of one or more components.

    Attributes:
        held: bytes of all weights.
        at_work: bytes of the largest quantised weight while it is dequantised, in fp32 and in its final type.
        quantized: how many numbers are quantised.
        others: how many are not.
    """

    held: int
    at_work: int
    quantized: int
    others: int

    def described(self, kind: str, precision: str) -> str:
        """Return how many numbers are kept in which type; `kind` is that of the ones that are not quantised."""
        if not self.quantized:
            return f"{self.others / 1e6:.1f} M numbers in {kind}"
        return f"{self.quantized / 1e6:.1f} M numbers in {precision}, {self.others / 1e6:.1f} M in {kind}"
