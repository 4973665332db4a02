"""Our schedule from a folder's scheduler_config.json; refused where our own arithmetic would not be the scheduler's."""

import math
from pathlib import Path
from typing import Any

from dpdmd.models.noise_schedule import EpsilonSchedule, FlowSchedule
from dpdmd.models.sampling_defaults import Note, read_note
from dpdmd.models.weight_files import read_json

_FLOW_OPTIONS = (  # bend the grid
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
    "shift_terminal",
)
_EULER_DEFAULTS = {  # of diffusers, where a file says nothing
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "final_sigmas_type": "zero",
    "trained_betas": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "rescale_betas_zero_snr": False,
}
_SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
_SDXL_GRID = {"beta_schedule": "scaled_linear", "timestep_spacing": "leading"}
SDXL_SCHEDULE = EpsilonSchedule(**_SDXL)  # the same for every model of the family, so that it need not be handed around


def _read(folder: Path, scheduler: str) -> tuple[Path, dict[str, Any]]:
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    if config.get("_class_name") != scheduler:
        raise ValueError(f"{path} is of a {config.get('_class_name')}, but a {scheduler} is needed")
    return path, config


def read_flow_schedule(folder: Path) -> FlowSchedule:
    """Of a FlowMatchEulerDiscreteScheduler whose grid nothing but its shift bends; the folder's note knows it better.

    Raises:
        ValueError: another scheduler class, or an option that we do not reproduce.
    """
    path, config = _read(folder, "FlowMatchEulerDiscreteScheduler")
    bent = [name for name in _FLOW_OPTIONS if config.get(name)]
    if bent or config.get("num_train_timesteps", 1000) != 1000:
        raise ValueError(f"{path} sets {', '.join(bent) or 'num_train_timesteps'}, which this family does not use")
    shift = read_note(folder, Note()).shift or config.get("shift", 1.0)
    if not (isinstance(shift, int | float) and math.isfinite(shift) and shift > 0):
        raise ValueError(f"{path} sets shift {shift!r}, which must be a number above 0")
    return FlowSchedule(float(shift))


def read_sdxl_schedule(folder: Path) -> EpsilonSchedule:
    """Of an EulerDiscreteScheduler with SDXL's betas and grid.

    Raises:
        ValueError: another scheduler class, or other values.
    """
    path, config = _read(folder, "EulerDiscreteScheduler")
    found, wanted = {**_EULER_DEFAULTS, **config}, {**_EULER_DEFAULTS, **_SDXL, **_SDXL_GRID}
    other = [name for name, value in wanted.items() if (found.get(name) or False) != (value or False)]
    if other:
        told = ", ".join(f"{name} {found.get(name)!r} in place of {wanted[name]!r}" for name in other)
        raise ValueError(f"{path} sets {told}, which this family does not use")
    return SDXL_SCHEDULE
