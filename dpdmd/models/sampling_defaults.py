"""Sampling defaults of a pipeline or LoRA folder: its `dpdmd.json`."""

import os
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from dpdmd.config.image_sizes import ImageSize
from dpdmd.config.options import MAX_COUNT, MAX_GRID_STEPS, MAX_GUIDANCE
from dpdmd.config.validation import shown
from dpdmd.models.noise_schedule import DEFAULT, GRIDS, SHIFTS
from dpdmd.utils.atomic_files import write_json
from dpdmd.utils.json_values import is_finite_number
from dpdmd.utils.paths import DEFAULTS_FILE, find_base
from dpdmd.utils.text_files import read_json


@dataclass(frozen=True)
class SamplingDefaults:
    """Sampling options of a folder: those in its `dpdmd.json`, else those of its family's layout.

    Attributes:
        sigmas: the exact grid [steps + 1] with the final 0, at `height` and `width`; None for the scheduler's own.
        grid: name of the grid (`noise_schedule.GRIDS`) for any other number of steps.
        shift: the model's own shift, if its scheduler's file has 1 because `sigmas` are already shifted.
        own_scheduler: values of the model's own scheduler, if its file has others to make `sigmas` from `steps`.
        sigmas_argument: `sigmas=` of diffusers' pipeline; None if `num_inference_steps` alone gives `sigmas`.
        base: absolute path of the pipeline folder that a LoRA changes, or its id on the Hub, "org/name"; None in a
            pipeline folder.
        base_from_here: the same as a path relative to the LoRA folder, used if `base` is gone, as in a moved tree.
        no_t5: the model was trained with `--no_t5`, and its folder has no T5.
        bf16: whether the networks computed in bf16 in training; None if unknown.
        height, width: size in pixels that a student was trained at; None for the size that the network was made for.
        base_revision: commit of `base` on the Hub.
        base_variant: variant of the weights of `base` that a LoRA was trained with, such as fp16.
        sizes: all sizes that a student was trained at, each WIDTHxHEIGHT, if they are several; the first is `height`
            and `width`.
    """

    steps: int = 30
    guidance_scale: float = 3.5
    max_sequence_length: int = 256
    sigmas: tuple[float, ...] | None = None
    grid: str = DEFAULT
    shift: float | None = None
    base: str | None = None
    no_t5: bool = False
    bf16: bool | None = None
    height: int | None = None
    width: int | None = None
    base_from_here: str | None = None
    base_revision: str | None = None
    base_variant: str | None = None
    sizes: tuple[str, ...] | None = None
    own_scheduler: dict[str, float | bool | None] | None = None
    sigmas_argument: tuple[float, ...] | None = None

    @property
    def trained_sizes(self) -> list[ImageSize]:
        """The sizes that a student was trained at; empty if they are not known, as for a teacher."""
        if self.sizes:
            return [ImageSize.parse(size, "sizes") for size in self.sizes]
        return [ImageSize(self.height, self.width)] if self.height and self.width else []

    def on_grid(self, **values: Any) -> "SamplingDefaults":
        """Return the defaults with what an exported scheduler needs: `shift`, `own_scheduler`, `sigmas_argument`."""
        return replace(self, **({"shift": None, "own_scheduler": None, "sigmas_argument": None} | values))

    def with_base(self, base: Path, folder: Path) -> "SamplingDefaults":
        """Return the defaults of a LoRA of `base` that is saved in `folder`. A base on the Hub stays."""
        if self.base_revision:
            return self
        absolute = self.base or os.path.abspath(base)  # `base` may be the folder of a variant's links
        return replace(self, base=absolute, base_from_here=os.path.relpath(absolute, os.path.realpath(folder)))

    def find_base(self, folder: Path) -> Path | None:
        """Return the pipeline folder that a LoRA in `folder` changes, even if it is gone; None if none is named."""
        return find_base(folder, self.base, self.base_from_here)

    def write(self, folder: Path) -> None:
        """Save the defaults in a folder; diffusers ignores files that it does not know."""
        write_json(folder / DEFAULTS_FILE, asdict(self))


def _is_count(value: Any, most: int = MAX_COUNT) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_shift(value: Any) -> bool:
    return value is None or (is_finite_number(value) and SHIFTS[0] <= value <= SHIFTS[1])


def _is_word(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(value))


def _are_sizes(value: Any) -> bool:
    """Return whether `value` is a list of at least one size, each WIDTHxHEIGHT."""
    try:
        return isinstance(value, list | tuple) and bool([ImageSize.parse(size, "") for size in value])
    except (TypeError, ValueError):
        return False


def _is_numbers(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple) and all(map(is_finite_number, value)))


def _is_settings(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and all(each is None or isinstance(each, bool) or is_finite_number(each) for each in value.values())
    )


def _is_grid(value: Any, steps: int) -> bool:
    """Return whether `value` is `steps` + 1 numbers that fall strictly to 0."""
    if not (isinstance(value, list | tuple) and len(value) == steps + 1 and all(map(is_finite_number, value))):
        return False
    return value[-1] == 0 and all(above > below for above, below in pairwise(value))


def _check(values: SamplingDefaults) -> None:
    """Check the values, since a file may hold anything.

    Raises:
        ValueError: the first invalid value.
    """
    for name, holds, wanted in (
        ("steps", _is_count(values.steps, MAX_GRID_STEPS), f"a whole number, at least 1 and at most {MAX_GRID_STEPS}"),
        (
            "guidance_scale",
            is_finite_number(values.guidance_scale) and 0 <= values.guidance_scale <= MAX_GUIDANCE,
            f"a number, at least 0 and at most {MAX_GUIDANCE:,.0f}",
        ),
        ("max_sequence_length", _is_count(values.max_sequence_length), "a whole number, at least 1"),
        ("grid", values.grid in GRIDS, f"one of {', '.join(GRIDS)}"),
        ("shift", _is_shift(values.shift), f"a number from {SHIFTS[0]:g} to {SHIFTS[1]:g}, or null"),
        ("own_scheduler", _is_settings(values.own_scheduler), "numbers, true, false or null by name, or null"),
        ("sigmas_argument", _is_numbers(values.sigmas_argument), "numbers, or null"),
        ("base", _is_word(values.base), "a path, or null"),
        ("base_from_here", _is_word(values.base_from_here), "a path, or null"),
        ("base_revision", _is_word(values.base_revision), "a commit, or null"),
        ("base_variant", _is_word(values.base_variant), "a name, or null"),
        ("no_t5", isinstance(values.no_t5, bool), "true or false"),
        ("bf16", values.bf16 is None or isinstance(values.bf16, bool), "true or false, or null"),
        ("height", values.height is None or _is_count(values.height), "a whole number, at least 1, or null"),
        ("width", values.width is None or _is_count(values.width), "a whole number, at least 1, or null"),
        ("sizes", values.sizes is None or _are_sizes(values.sizes), "texts such as 832x1216, or null"),
    ):
        if not holds:
            raise ValueError(f"{name} is {shown(repr(getattr(values, name)))}, which must be {wanted}")
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
    lists = {name: getattr(defaults, name) for name in ("sigmas", "sigmas_argument", "sizes")}
    return replace(defaults, **{name: None if value is None else tuple(value) for name, value in lists.items()})
