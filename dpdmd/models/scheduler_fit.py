"""Settings with which diffusers' own schedulers step through a student's grid, for `num_inference_steps` alone.

Each function proposes settings. The caller compares the grid that the scheduler then makes, since most grids of given
numbers are out of reach.
"""

from collections.abc import Sequence

from dpdmd.models.noise_schedule import NUM_TRAIN_TIMESTEPS

_LEAST = 1 / NUM_TRAIN_TIMESTEPS  # sigma of the scheduler's last training time, before the shift


def fit_flow_scheduler(sigmas: Sequence[float]) -> dict[str, float]:
    """Return the `shift` and `shift_terminal` whose grid meets the first, the middle and the last of `sigmas` above 0.

    With v from 0 to 1 in even steps, the scheduler's sigmas are 1 - A v / (1 - B v): A sets the last one, which
    `shift_terminal` gives, and B = (s - 1) b / s the bend, where s is the shift and 1 - b is the sigma at which
    FlowMatchEulerDiscreteScheduler starts its shift for the last step, s / (1000 + s - 1). This holds every trailing
    grid and every grid of up to three steps unless it bends too much.

    Args:
        sigmas: at least three, from 1, falling strictly to 0.

    Raises:
        ValueError: no shift bends the grid as much.
    """
    b, last = _bend(sigmas)
    if abs(b) < 1e-9:
        return {"shift": 1.0, "shift_terminal": last}
    # B = (s - 1) (1 - e) / (s (1 + (s - 1) e)) with e = _LEAST, as a quadratic equation in s.
    square, linear, constant = b * _LEAST, (b - 1) * (1 - _LEAST), 1 - _LEAST
    root = linear**2 - 4 * square * constant
    if root < 0:
        raise ValueError("no shift bends the grid as much")
    return {"shift": 2 * constant / (-linear + root**0.5), "shift_terminal": last}


def fit_even_flow_scheduler(sigmas: Sequence[float]) -> dict[str, float]:
    """Return the same for a scheduler that gets N even times from its pipeline: there B = (s - 1) (N - 1) / (s N).

    Args:
        sigmas: at least three, from 1, falling strictly to 0.

    Raises:
        ValueError: no shift bends the grid as much.
    """
    b, last = _bend(sigmas)
    steps = len(sigmas) - 1
    largest = (steps - 1) / steps
    if b >= largest:
        raise ValueError("no shift bends the grid as much")
    return {"shift": largest / (largest - b), "shift_terminal": last}


def _bend(sigmas: Sequence[float]) -> tuple[float, float]:
    """Return B of 1 - A v / (1 - B v) through the first, the middle and the last sigma above 0, and the last one.

    Raises:
        ValueError: there is only one sigma above 0.
    """
    if len(sigmas) < 3:
        raise ValueError("one step has no grid to bend")
    last, middle = sigmas[-2], len(sigmas) // 2 - 1
    v = middle / (len(sigmas) - 2)
    bend = (1 - sigmas[middle]) / (v * (1 - last)) if middle else 1.0
    return (1 - bend) / (1 - v * bend), last


def fit_euler_scheduler(times: Sequence[float]) -> dict[str, int]:
    """Return the `steps_offset` of EulerDiscreteScheduler's spacing "leading" whose last time is that of `times`.

    The other times follow, 1000 // N apart. So trailing grids are within reach if N divides 1000.

    Args:
        times: of the N steps, falling.
    """
    return {"steps_offset": round(times[-1])}
