"""Grids of flows whose pipeline spaces the times, against the installed diffusers: its scheduler, its pipelines."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas

from dpdmd.models.even_flow_schedule import EvenFlowSchedule
from dpdmd.models.noise_schedule import FlowSchedule

STEPS = [1, 2, 3, 4, 6, 28, 50]
PATCH = 256  # pixels of one token


def by_size(pixels: int, steps: int) -> float:
    """A shift by the image's tokens, as Qwen-Image's."""
    return math.exp(0.5 + 0.4 * (pixels / PATCH - 256) / (8192 - 256))


def by_size_and_steps(pixels: int, steps: int) -> float:
    """A shift by tokens and steps, as FLUX.2's."""
    return math.exp(compute_empirical_mu(pixels // PATCH, steps))


@pytest.mark.parametrize("num_steps", STEPS)
def test_one_shift(num_steps):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(num_steps))
    ours = EvenFlowSchedule(6.0).default_sigmas(num_steps)
    assert torch.equal(ours, scheduler.sigmas)
    assert torch.equal(ours, EvenFlowSchedule(6.0).trailing_sigmas(num_steps))


def test_the_schedulers_own_times_are_another_grid():
    """What a Stable Diffusion 3 would step through with this shift: the last step of four would do almost nothing."""
    ours, other = EvenFlowSchedule(6.0).default_sigmas(4), FlowSchedule(6.0).default_sigmas(4)
    assert [round(sigma, 3) for sigma in ours.tolist()] == [1, 0.947, 0.857, 0.667, 0]
    assert [round(sigma, 3) for sigma in other.tolist()] == [1, 0.924, 0.753, 0.035, 0]


@pytest.mark.parametrize("num_steps", STEPS[1:])  # with one step diffusers divides 0 by 0
@pytest.mark.parametrize("size", [(1024, 1024), (1328, 1328), (512, 768)])
def test_a_shift_by_size_with_a_last_sigma(num_steps, size):
    dynamic = {"use_dynamic_shifting": True, "shift_terminal": 0.02}
    scheduler = FlowMatchEulerDiscreteScheduler(**dynamic, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192)
    mu = calculate_shift(size[0] * size[1] // PATCH, 256, 8192, 0.5, 0.9)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
    ours = EvenFlowSchedule(by_size, 0.02).at_size(*size)
    assert torch.equal(ours.default_sigmas(num_steps), scheduler.sigmas)
    assert ours.default_sigmas(num_steps)[-2].item() == pytest.approx(0.02, rel=1e-5)
    assert ours.trailing_sigmas(num_steps)[-2] > 0.02


def test_one_step_with_a_last_sigma_goes_from_noise_to_data():
    assert EvenFlowSchedule(by_size, 0.02).at_size(1024, 1024).default_sigmas(1).tolist() == [1, 0]


@pytest.mark.parametrize("num_steps", STEPS)
@pytest.mark.parametrize("size", [(1024, 1024), (512, 768), (2048, 2048)])
def test_a_shift_by_size_and_steps(num_steps, size):
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = compute_empirical_mu(size[0] * size[1] // PATCH, num_steps)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
    ours = EvenFlowSchedule(by_size_and_steps).at_size(*size)
    assert torch.equal(ours.default_sigmas(num_steps), scheduler.sigmas)


@pytest.mark.parametrize(
    "schedule", [EvenFlowSchedule(6.0), EvenFlowSchedule(by_size, 0.02), EvenFlowSchedule(by_size_and_steps)]
)
def test_score_times_have_the_shift_of_the_teachers_grid(schedule):
    """The teacher's sigmas are among them, or between them if they are stretched; none is nonsense at 1000 steps."""
    bound, steps = schedule.at_size(1024, 1024), 50
    scores, grid = bound.score_sigmas(steps), bound.trailing_sigmas(steps)[:-1]
    assert len(scores) == 1000 and scores[0] == 1 and 0 < scores[-1] < 0.02 and (scores.diff() < 0).all()
    torch.testing.assert_close(scores[::20], grid, rtol=0, atol=1e-6)
    assert scores.median() > 0.5  # as for the teacher, most times are noisy


def test_a_rule_needs_a_size():
    with pytest.raises(ValueError, match="depends on the image size"):
        EvenFlowSchedule(by_size).default_sigmas(4)
    assert FlowSchedule(3.0).at_size(64, 64).default_sigmas(4).tolist() == FlowSchedule(3.0).default_sigmas(4).tolist()
