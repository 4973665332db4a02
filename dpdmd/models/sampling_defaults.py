"""Sampling defaults of a pipeline or LoRA folder: its `dpdmd.json`."""

import json
import math
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from dpdmd.models.noise_schedule import DEFAULT, GRIDS
from dpdmd.utils.text_files import read_json

DEFAULTS_FILE = "dpdmd.json"  # beside model_index.json


@dataclass(frozen=True)
class SamplingDefaults:
    """How a folder wants to be sampled: what its family's layout says, unless its `dpdmd.json` says otherwise.

    Attributes:
        sigmas: the exact grid [steps + 1], final 0 included, where it is not the scheduler's own.
        grid: name of the grid (`schedules.GRIDS`) on which it takes any other number of steps.
        shift: the model's own shift, where its scheduler's file holds 1 because `sigmas` are shifted already.
        base: pipeline folder that a LoRA changes; None in a pipeline folder.
        no_t5: it was trained with `--no_t5`, and its folder holds no T5.
    """

    steps: int = 30
    guidance_scale: float = 3.5
    max_sequence_length: int = 256
    sigmas: tuple[float, ...] | None = None
    grid: str = DEFAULT
    shift: float | None = None
    base: str | None = None
    no_t5: bool = False

    def write(self, folder: Path) -> None:
        """Save beside the pipeline; diffusers passes over files it does not know."""
        (folder / DEFAULTS_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_grid(value: Any, steps: int) -> bool:
    """Whether `value` is `steps` + 1 numbers that fall strictly to 0."""
    if not (isinstance(value, list | tuple) and len(value) == steps + 1 and all(map(_is_number, value))):
        return False
    return value[-1] == 0 and all(above > below for above, below in pairwise(value))


def _check(values: SamplingDefaults) -> None:
    """Check the values, since a file may hold anything.

    Raises:
        ValueError: the first invalid value.
    """
    for name, holds, wanted in (
        ("steps", _is_count(values.steps), "a whole number, at least 1"),
        ("guidance_scale", _is_number(values.guidance_scale) and values.guidance_scale >= 0, "a number, at least 0"),
        ("max_sequence_length", _is_count(values.max_sequence_length), "a whole number, at least 1"),
        ("grid", values.grid in GRIDS, f"one of {', '.join(GRIDS)}"),
        ("shift", values.shift is None or (_is_number(values.shift) and values.shift > 0), "a number above 0, or null"),
        ("base", values.base is None or (isinstance(values.base, str) and values.base), "a path, or null"),
        ("no_t5", isinstance(values.no_t5, bool), "true or false"),
    ):
        if not holds:
            raise ValueError(f"{name} is {getattr(values, name)!r}, which must be {wanted}")
    if values.sigmas is not None and not _is_grid(values.sigmas, values.steps):
        raise ValueError(f"sigmas must be null or {values.steps + 1} numbers (steps + 1) that fall strictly to 0")


def read_sampling_defaults(folder: Path, family_defaults: SamplingDefaults) -> SamplingDefaults:
    """Return the sampling defaults of a folder, or `family_defaults` if the folder has no dpdmd.json.

    Raises:
        ValueError: the file is unreadable, or holds unknown entries or invalid values.
    """
    path = folder / DEFAULTS_FILE
    try:
        if not path.exists():
            return family_defaults
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        defaults = SamplingDefaults(**read_json(path))
    except TypeError as error:
        raise ValueError(f"{path}: not of this version ({error})") from None
    try:
        _check(defaults)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return replace(defaults, sigmas=None if defaults.sigmas is None else tuple(defaults.sigmas))
