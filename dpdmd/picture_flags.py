"""The flags of every program that makes pictures: what they may be, told before anything heavy is imported."""

import math
from collections.abc import Mapping
from typing import Any

MOST_IMAGES = 100_000  # of a prompt
LARGEST_SEED = 2**32 - 1  # what numpy and accelerate take
MOST_STEPS = 1000  # the times that the models were trained at: more steps add nothing
MOST_PIXELS = 2**16  # a side
MOST_TOKENS = 512  # of T5, as in diffusers
# Flag -> (least, most). What is None was not given, and the model's folder decides.
RANGES = {
    "num_images": (1, MOST_IMAGES),
    "num_samples": (1, MOST_IMAGES),
    "num_seeds": (1, MOST_IMAGES),
    "batch_size": (1, math.inf),
    "gen_batch_size": (1, math.inf),
    "seed": (0, LARGEST_SEED),
    "steps": (1, MOST_STEPS),
    "guidance_scale": (0, math.inf),
    "height": (1, MOST_PIXELS),
    "width": (1, MOST_PIXELS),
    "max_sequence_length": (1, MOST_TOKENS),
    "num_crops": (1, MOST_IMAGES),
    "maniqa_scale": (0, math.inf),
}


def check_ranges(values: Mapping[str, Any]) -> None:
    """Check those of `values` (flag -> value) that RANGES knows.

    Raises:
        ValueError: one line that names the flag and what it may be.
    """
    for flag, (least, most) in RANGES.items():
        value = values.get(flag)
        if value is None or (least <= value <= most and value != math.inf):
            continue
        told = f"{least} to {most}" if most < math.inf else f"a finite number, at least {least}"
        raise ValueError(f"--{flag} {value}: must be {told}")
