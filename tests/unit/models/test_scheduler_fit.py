"""Exported schedulers make a student's grid from the number of steps alone, wherever diffusers' schedulers can."""

import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from dpdmd.models.even_flow_schedule import EvenFlowSchedule
from dpdmd.models.noise_schedule import FlowSchedule
from dpdmd.models.pipeline_export import makes_grid
from dpdmd.models.scheduler_fit import fit_euler_scheduler, fit_even_flow_scheduler, fit_flow_scheduler
from dpdmd.models.sdxl.layout import SCHEDULE

SDXL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "timestep_spacing": "leading"}


def fits_flow(sigmas: list[float]) -> bool:
    try:
        return makes_grid(FlowMatchEulerDiscreteScheduler(**fit_flow_scheduler(sigmas)), sigmas)
    except ValueError:
        return False


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 5.0])
def test_a_shift_with_a_terminal_makes_every_trailing_grid(shift):
    assert all(fits_flow(FlowSchedule(shift).trailing_sigmas(steps).tolist()) for steps in range(2, 51))


@pytest.mark.parametrize(
    ("numbers", "fits"),
    [
        ([1.0, 0.4], True),
        ([1.0, 0.001], True),
        ([1.0, 0.8, 0.5], True),
        ([1.0, 0.3, 0.2], True),
        ([1.0, 0.999, 0.002], False),  # no shift bends as much
        ([1.0, 0.9, 0.75, 0.5], True),
        ([1.0, 0.86, 0.6, 0.3], False),  # two settings cannot meet four numbers
    ],
)
def test_grids_of_given_numbers_are_made_or_known_not_to_be(numbers, fits):
    assert fits_flow([*numbers, 0.0]) is fits


def fits_even_flow(sigmas: list[float]) -> bool:
    steps = len(sigmas) - 1
    even = [(steps - index) / steps for index in range(steps)]
    try:
        return makes_grid(FlowMatchEulerDiscreteScheduler(**fit_even_flow_scheduler(sigmas)), sigmas, even)
    except ValueError:
        return False


@pytest.mark.parametrize("terminal", [None, 0.02, 0.4])
@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 6.0])
def test_with_even_times_every_shifted_and_stretched_grid_is_made(shift, terminal):
    schedule = EvenFlowSchedule(shift, terminal)
    assert all(fits_even_flow(schedule.default_sigmas(steps).tolist()) for steps in range(2, 51))


@pytest.mark.parametrize(
    ("numbers", "fits"),
    [
        ([1.0, 0.4], True),
        ([1.0, 0.8, 0.5], True),
        ([1.0, 0.999, 0.002], False),  # no shift bends as much
        ([1.0, 0.86, 0.6, 0.3], False),  # two settings cannot meet four numbers
    ],
)
def test_with_even_times_other_numbers_are_made_or_known_not_to_be(numbers, fits):
    assert fits_even_flow([*numbers, 0.0]) is fits


@pytest.mark.parametrize("fit", [fit_flow_scheduler, fit_even_flow_scheduler])
def test_one_step_is_not_fitted(fit):
    with pytest.raises(ValueError, match="one step has no grid to bend"):
        fit([1.0, 0.0])


@pytest.mark.parametrize(("steps", "fits"), [(1, True), (2, True), (4, True), (8, True), (3, False), (48, False)])
def test_an_offset_makes_sdxls_trailing_grids_whose_steps_divide_1000(steps, fits):
    sigmas = SCHEDULE.trailing_sigmas(steps)
    values = fit_euler_scheduler(SCHEDULE.times(sigmas[:-1]).tolist())
    scheduler = EulerDiscreteScheduler(**SDXL, **values)
    assert makes_grid(scheduler, sigmas.tolist()) is fits
    if fits:  # the network's times and the variance of the start noise too
        assert torch.equal(scheduler.timesteps, SCHEDULE.times(sigmas[:-1]))
        assert scheduler.init_noise_sigma == pytest.approx((sigmas[0] ** 2 + 1).sqrt().item(), rel=1e-5)


def test_a_grid_with_another_number_of_steps_is_not_the_same():
    assert not makes_grid(FlowMatchEulerDiscreteScheduler(shift=3.0), FlowSchedule(3.0).trailing_sigmas(4).tolist())
