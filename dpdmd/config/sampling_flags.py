"""The flags of every program that makes images: what they may be, told before anything heavy is imported."""

import math
from collections.abc import Mapping
from typing import Any

from dpdmd.config.options import MAX_BATCH, MAX_GRID_STEPS, MAX_IMAGES, MAX_PIXELS
from dpdmd.config.scorer_table import SCORERS
from dpdmd.config.validation import shown

MAX_SEED = 2**32 - 1  # what numpy and accelerate take
MAX_TOKENS = 512  # of T5, as in diffusers
MAX_IN_ALL = 10_000_000  # images of one call: each has a line in memory
# Flag -> (least, most). What is None was not given, and the model's folder decides.
RANGES = {
    "num_images": (1, MAX_IMAGES),
    "num_samples": (1, MAX_IMAGES),
    "num_seeds": (1, MAX_IMAGES),
    "batch_size": (1, MAX_BATCH),
    "gen_batch_size": (1, MAX_BATCH),
    "seed": (0, MAX_SEED),
    "steps": (1, MAX_GRID_STEPS),
    "guidance_scale": (0, math.inf),
    "height": (1, MAX_PIXELS),
    "width": (1, MAX_PIXELS),
    "max_sequence_length": (1, MAX_TOKENS),
    **{option.flag: option.bounds for row in SCORERS.values() for option in row.options if option.bounds},
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
        raise ValueError(f"--{flag} {shown(value)}: must be {told}")


def check_total(flag: str, num_prompts: int, num_images: int) -> None:
    """Check how many images a command line asks for; `flag` is the one that says how many a prompt.

    Raises:
        ValueError: more than can be made in years.
    """
    if num_prompts * num_images > MAX_IN_ALL:
        raise ValueError(
            f"--{flag} {num_images}: with {num_prompts} prompts these are {num_prompts * num_images} images, and one "
            f"call makes at most {MAX_IN_ALL}; give fewer"
        )
