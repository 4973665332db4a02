"""The file of a FlowMatchEulerDiscreteScheduler. Imports no diffusers."""

import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from dpdmd.config.validation import shown
from dpdmd.models.even_flow_schedule import EvenFlowSchedule
from dpdmd.models.layout import read_scheduler_config
from dpdmd.models.noise_schedule import SHIFTS
from dpdmd.utils.json_values import is_finite_number

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
_MAX_MU = 80.0  # fp32 holds e^88; Qwen-Image has 0.8 at 1328 x 1328
_OTHER_GRIDS = (  # options of the scheduler that change the grid
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
    "shift_terminal",
)


def read_flow_scheduler(folder: Path, used: Collection[str] = ()) -> tuple[Path, dict[str, Any]]:
    """Return the path and the values of the scheduler of a pipeline folder.

    Args:
        used: the options that change the grid and that the family's schedule reproduces.

    Raises:
        ValueError: the scheduler is of another class, or sets another option that changes the grid.
    """
    path, config = read_scheduler_config(folder, SCHEDULER)
    unknown = [name for name in _OTHER_GRIDS if config.get(name) and name not in used]
    if unknown or config.get("num_train_timesteps", 1000) != 1000:
        raise ValueError(f"{path} sets {', '.join(unknown) or 'num_train_timesteps'}, which this family does not use")
    return path, config


def read_shift(folder: Path) -> float:
    """Return the one shift of the model's own scheduler.

    Raises:
        ValueError: the scheduler has more than one shift (`read_flow_scheduler`), or the shift is no number in SHIFTS.
    """
    path, config = read_flow_scheduler(folder)
    return _number(path, config, "shift", 1.0, SHIFTS)


def read_even_schedule(folder: Path) -> EvenFlowSchedule:
    """Return the schedule of a pipeline that gives its scheduler, which has one shift, even times.

    Raises:
        ValueError: the scheduler is of another class, or sets an option that this schedule does not reproduce.
    """
    return EvenFlowSchedule(read_shift(folder))


def read_dynamic_shift(folder: Path) -> tuple[float | Callable[[float], float], float | None]:
    """Return the shift of a scheduler that may set `use_dynamic_shifting`, and its terminal (`EvenFlowSchedule`).

    diffusers' pipelines give a dynamic scheduler mu, linear in the number of the image's tokens, and its shift is e^mu.

    Returns:
        (the shift, or a function of the number of tokens that gives it; the terminal or None).

    Raises:
        ValueError: the scheduler is of another class, sets another option that changes the grid, or a value is no
            number in its range.
    """
    path, config = read_flow_scheduler(folder, ("use_dynamic_shifting", "shift_terminal"))
    if config.get("time_shift_type", "exponential") != "exponential":
        raise ValueError(f"{path} sets time_shift_type {config['time_shift_type']}, which this family does not use")
    terminal = _number(path, config, "shift_terminal", 0.0) if config.get("shift_terminal") else None
    if terminal is not None and not 0 < terminal < 1:
        raise ValueError(f"{path} sets shift_terminal {terminal!r}, which must be a number between 0 and 1")
    if not config.get("use_dynamic_shifting"):
        return _number(path, config, "shift", 1.0, SHIFTS), terminal
    logs = tuple(map(math.log, SHIFTS))
    least, most = (_number(path, config, f"{end}_shift", mu, logs) for end, mu in (("base", 0.5), ("max", 1.15)))
    first, last = (_number(path, config, f"{end}_image_seq_len", n) for end, n in (("base", 256), ("max", 4096)))
    if first == last:
        raise ValueError(f"{path} sets base_image_seq_len and max_image_seq_len to {first:g}, which must differ")
    slope = (most - least) / (last - first)

    def shift(tokens: float) -> float:
        mu = least + slope * (tokens - first)
        if abs(mu) > _MAX_MU:
            raise ValueError(
                f"{path}: by its base_shift and max_shift, an image of {tokens:g} tokens has the shift e^{mu:.3g}, on "
                "whose grid nothing can be sampled"
            )
        return math.exp(mu)

    return shift, terminal


def _number(
    path: Path, config: dict[str, Any], name: str, default: float, limits: tuple[float, float] | None = None
) -> float:
    value = config.get(name, default)
    if not is_finite_number(value) or (limits and not limits[0] <= value <= limits[1]):
        place = f" from {limits[0]:.3g} to {limits[1]:.4g}" if limits else ""
        raise ValueError(f"{path} sets {name} {shown(repr(value))}, which must be a number{place}")
    return float(value)
