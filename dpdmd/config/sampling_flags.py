"""Flags of the programs that sample images, and their ranges. Imports nothing heavy."""

import argparse
import math
from collections.abc import Mapping
from typing import Any

from dpdmd.config.image_sizes import MAX_PIXELS, ImageSize
from dpdmd.config.options import MAX_BATCH, MAX_COUNT, MAX_GRID_STEPS, MAX_GUIDANCE, MAX_IMAGES
from dpdmd.config.scorer_table import SCORERS
from dpdmd.config.validation import shown

MAX_SEED = 2**32 - 1  # limit of numpy and accelerate
MAX_TOKENS = 1024  # of Qwen-Image; a layout may allow fewer
MAX_IN_ALL = 10_000_000  # images of one call, each with an entry in memory
# Flag -> (type, help, default). With default None the model's folder decides.
FLAGS = {
    "seed": (int, "seed of all random draws", 0),
    "steps": (int, "sampling steps", None),
    "guidance_scale": (float, "classifier-free guidance scale", None),
    "height": (int, "image height in pixels", None),
    "width": (int, "image width in pixels", None),
    "size": (str, "image size in pixels, WIDTHxHEIGHT, instead of --height and --width", None),
    "max_sequence_length": (int, "text tokens of a prompt", None),
    "bf16": (bool, "run the networks in bf16", None),
}
# Flag -> (least, most). If the most is an int, the value is a whole number.
RANGES = {
    "num_images": (1, MAX_IMAGES),
    "num_samples": (1, MAX_IMAGES),
    "num_seeds": (1, MAX_IMAGES),
    "num_prompts": (1, MAX_COUNT),
    "images_per_prompt": (1, MAX_IMAGES),
    "batch_size": (1, MAX_BATCH),
    "gen_batch_size": (1, MAX_BATCH),
    "seed": (0, MAX_SEED),
    "steps": (1, MAX_GRID_STEPS),
    "guidance_scale": (0, MAX_GUIDANCE),
    "height": (1, MAX_PIXELS),
    "width": (1, MAX_PIXELS),
    "max_sequence_length": (1, MAX_TOKENS),
    **{option.flag: option.bounds for row in SCORERS.values() for option in row.options if option.bounds},
}


def add_sampling_flags(parser: argparse.ArgumentParser, *names: str) -> None:
    """Declare flags of FLAGS, in the given order."""
    for name in names:
        kind, help, default = FLAGS[name]
        shown_default = "from the model's folder" if default is None else default
        parser.add_argument(
            f"--{name}",
            default=default,
            help=f"{help} (default: {shown_default})",
            **({"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}),
        )


def check_ranges(values: Mapping[str, Any]) -> None:
    """Check the values (flag -> value) that have a range in RANGES. None means that the flag was not given.

    Raises:
        ValueError: one line that names the flag and its range.
    """
    for flag, (least, most) in RANGES.items():
        value = values.get(flag)
        if value is None or (least <= value <= most and value != math.inf):
            continue
        allowed = f"{least} to {most}"
        if isinstance(most, float):
            allowed = f"a finite number, at least {least}" + (f" and at most {most:,.0f}" if most < math.inf else "")
        raise ValueError(f"--{flag} {shown(value)}: must be {allowed}")


def apply_size(args: argparse.Namespace) -> None:
    """Set `height` and `width` to those of `--size` if it is given.

    Raises:
        ValueError: not a size, or --height or --width is given, too.
    """
    if args.size is None:
        return
    size = ImageSize.parse(args.size, "--size")
    if args.height is not None or args.width is not None:
        raise ValueError(f"--size {args.size}: leave out --height and --width, or give them alone")
    args.height, args.width = size


def check_total(flag: str, num_prompts: int, num_images: int) -> None:
    """Check the number of images of a command line. `flag` is the flag that gives the number of images per prompt.

    Raises:
        ValueError: more than MAX_IN_ALL, which would take years.
    """
    if num_prompts * num_images > MAX_IN_ALL:
        raise ValueError(
            f"--{flag} {num_images}: with {num_prompts} prompts these are {num_prompts * num_images} images, and one "
            f"call makes at most {MAX_IN_ALL}; give fewer"
        )
