"""The file of a FlowMatchEulerDiscreteScheduler. Imports no diffusers."""

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dpdmd.models.even_flow_schedule import EvenFlowSchedule
from dpdmd.models.layout import read_scheduler_config

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
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
        ValueError: the scheduler has more than one shift (`read_flow_scheduler`), or the shift is no number above 0.
    """
    path, config = read_flow_scheduler(folder)
    shift = config.get("shift", 1.0)
    if not (isinstance(shift, int | float) and math.isfinite(shift) and shift > 0):
        raise ValueError(f"{path} sets shift {shift!r}, which must be a number above 0")
    return float(shift)


def read_even_schedule(folder: Path) -> EvenFlowSchedule:
    """Return the schedule of a pipeline that gives its scheduler, which has one shift, even times.

    Raises:
        ValueError: the scheduler is of another class, or sets an option that this schedule does not reproduce.
    """
    return EvenFlowSchedule(read_shift(folder))
