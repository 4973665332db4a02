"""Noise algebra and time grids: against diffusers' scheduler, quoted values, and closed forms in float64."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from dpdmd.methods.anchor import anchor_target
from dpdmd.models.noise_schedule import FlowSchedule, expand, shift_sigmas

# Grids lie in [0, 1]. We compute in float64 and round once; the scheduler takes its lowest sigma from float32 (a few
# steps of 1e-9 there) and rounds once too: they may differ by one float32 step below 1, which is 2^-24 = 6e-8.
ONE_STEP = 2**-24
FLOW = FlowSchedule(shift=3.0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_default_grid_is_the_installed_schedulers(shift):
    """Guard against a diffusers that changes its grid: students would then sample where they were not trained."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    for num_steps in [*range(1, 51), 1000]:
        scheduler.set_timesteps(num_steps)
        ours = FlowSchedule(shift).default_sigmas(num_steps)
        torch.testing.assert_close(ours, scheduler.sigmas, rtol=0, atol=ONE_STEP, msg=f"{num_steps} steps")
        # The networks see 1000 sigma; float32 times of 512 to 1024 lie 6e-5 apart.
        torch.testing.assert_close(ours[:-1] * 1000, scheduler.timesteps, rtol=0, atol=6.2e-5, msg=f"{num_steps} steps")


def test_quoted_grids():
    """Values that the documentation quotes, and the two fixed points of the shift."""
    assert [round(sigma, 4) for sigma in FLOW.default_sigmas(4).tolist()] == [1, 0.8577, 0.6022, 0.0089, 0]
    # .9 and .75 are the nearest float32; 1, .5 and 0 are exact.
    assert FLOW.trailing_sigmas(4).tolist() == torch.tensor([1, 0.9, 0.75, 0.5, 0]).tolist()
    assert FlowSchedule(1.0).trailing_sigmas(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert FLOW.default_sigmas(1).tolist() == [1, 0]
    assert shift_sigmas(torch.tensor([0.0, 0.25, 0.5, 1.0]), 3.0).tolist() == [0, 0.5, 0.75, 1]


@pytest.mark.parametrize("num_steps", [1, 2, 4, 30, 1000])
def test_grids_fall_strictly_from_one_to_zero(num_steps):
    """A repeated sigma would make a step of length 0, and solve_step divide by 0."""
    for grid in (FLOW.default_sigmas(num_steps), FLOW.trailing_sigmas(num_steps)):
        assert len(grid) == num_steps + 1
        assert (grid[0], grid[-1]) == (1, 0)
        assert (grid.diff() < 0).all()


def test_grids_are_fp32_because_bf16_merges_times():
    """bf16 keeps 351 of the network's 1000 times, and 1 - t_k would be wrong by 2%."""
    for grid in (FLOW.default_sigmas(1000), FLOW.trailing_sigmas(1000), FLOW.parse_sigmas("1,.9,.75,.5", 4)):
        assert grid.dtype == torch.float32
    times = FLOW.default_sigmas(1000)[:-1] * 1000
    assert len(times.unique()) == 1000
    assert len(times.bfloat16().unique()) == 351
    one_minus_t = 1 - FLOW.default_sigmas(30)[2]
    assert abs((1 - FLOW.default_sigmas(30)[2].bfloat16()).float() / one_minus_t - 1) > 0.02


def test_a_scheduler_of_shift_one_samples_on_our_trailing_grid():
    """A student of another grid is exported with shift 1 and given `sigmas`: diffusers must not shift them again."""
    grid = FLOW.trailing_sigmas(4)
    exported = FlowMatchEulerDiscreteScheduler.from_config(FlowMatchEulerDiscreteScheduler(shift=3.0).config, shift=1.0)
    exported.set_timesteps(sigmas=grid[:-1].tolist())
    assert torch.equal(exported.sigmas, grid)
    shifted = FlowMatchEulerDiscreteScheduler(shift=3.0)
    shifted.set_timesteps(sigmas=grid[:-1].tolist())
    assert (shifted.sigmas - grid).abs().max() > 0.2  # with the scheduler's own shift


def test_parse_sigmas_accepts_names_and_numbers():
    """Names and numbers give the expected grids; a final 0 is optional."""
    assert torch.equal(FLOW.parse_sigmas("default", 4), FLOW.default_sigmas(4))
    assert torch.equal(FLOW.parse_sigmas("trailing", 4), FLOW.trailing_sigmas(4))
    assert FLOW.parse_sigmas("1.0, 0.5", 2).tolist() == [1, 0.5, 0]  # numbers are final: the shift is not applied
    assert FLOW.parse_sigmas("1,0.5,0", 2).tolist() == [1, 0.5, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("traling", "neither 'default' nor 'trailing'"),
        ("", "neither 'default' nor 'trailing'"),
        ("1,,0.5,0.25", "neither 'default' nor 'trailing'"),
        ("1,0.75,0.5", "3 sigmas, but the student takes 4"),
        ("1,0.9,0.75,0.5,0.25", "5 sigmas, but the student takes 4"),
        ("0.9,0.75,0.5,0.25", "must start at 1"),
        ("1,0.5,0.75,0.25", "fall strictly"),
        ("1,0.5,0.5,0.25", "fall strictly"),
        ("1,0.75,0.5,0", "staying above 0"),
        ("1,0.75,0.5,-0.25", "staying above 0"),
        ("1,0.75,nan,0.25", "fall strictly"),
        ("1,0.99999999,0.5,0.25", "fall strictly"),  # as written, not in fp32
        ("inf,0.75,0.5,0.25", "must start at 1"),
    ],
)
def test_parse_sigmas_rejects(text, message):
    """A mistyped grid must stop the run, not train on another grid."""
    with pytest.raises(ValueError, match=message):
        FLOW.parse_sigmas(text, 4)


def _pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0 and eps [3, 2, 4, 4] and sigma [3], float64."""
    random = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 3, 2, 4, 4, generator=random, dtype=torch.float64)
    return x0, eps, torch.tensor([0.05, 0.5, 1.0], dtype=torch.float64)


def test_add_noise_to_x0_round_trip():
    """x0 comes back from z_t and the true velocity, each sample at its own sigma; float64 rounds at about 1e-16."""
    x0, eps, sigma = _pair()
    z = FLOW.add_noise(x0, eps, sigma)
    by_hand = torch.stack([(1 - s) * x + s * e for x, e, s in zip(x0, eps, sigma.tolist(), strict=True)])
    torch.testing.assert_close(z, by_hand, rtol=0, atol=1e-15)
    torch.testing.assert_close(FLOW.to_x0(z, FLOW.target(x0, eps, sigma), sigma), x0, rtol=0, atol=1e-14)
    assert torch.equal(FLOW.target(x0, eps, sigma), eps - x0)
    assert torch.equal(FLOW.add_noise(x0, eps, torch.tensor(1.0)), eps)  # a scalar sigma is for all samples
    assert torch.equal(FLOW.add_noise(x0, eps, torch.tensor(0.0)), x0)


def test_step_follows_the_path_and_solve_step_inverts_it():
    """With the true velocity one step of any length stays on the path; solve_step finds that velocity again."""
    x0, eps, sigma_s = _pair()
    sigma_t = sigma_s / 3
    z_s, velocity = FLOW.add_noise(x0, eps, sigma_s), FLOW.target(x0, eps, sigma_s)
    z_t = FLOW.step(z_s, velocity, sigma_s, sigma_t)
    torch.testing.assert_close(z_t, FLOW.add_noise(x0, eps, sigma_t), rtol=0, atol=1e-14)
    # The difference of neighbouring latents loses digits: 1e-16 / (0.05 - 0.0167) is 3e-15, times a few.
    torch.testing.assert_close(FLOW.solve_step(z_s, z_t, sigma_s, sigma_t), velocity, rtol=0, atol=1e-13)
    anywhere = FLOW.solve_step(z_s, eps, sigma_s, sigma_t)  # not only along the path
    torch.testing.assert_close(FLOW.step(z_s, anywhere, sigma_s, sigma_t), eps, rtol=0, atol=1e-13)


def test_solve_step_from_noise_is_the_papers_anchor_target():
    """(eps - z_k) / (1 - t_k), paper section 4.1; a flipped sign would send the student away from the anchor."""
    z_k, eps, _ = _pair()
    t_k = torch.tensor(0.8, dtype=torch.float64)
    target = FLOW.solve_step(eps, z_k, torch.tensor(1.0, dtype=torch.float64), t_k)
    torch.testing.assert_close(target, (eps - z_k) / (1 - t_k), rtol=1e-14, atol=0)


@pytest.mark.parametrize("k_anchor", [1, 2, 5, 30])
def test_anchor_target_is_exact_on_a_linear_flow(k_anchor):
    """If every sample flows straight to its x0, the target is eps - x0 at any K; a t_k off by one step shows.

    The velocity depends on z and sigma, (z - x0) / sigma, so a wrong sigma given to the teacher shows too.
    """
    x0, eps, _ = _pair()
    sigmas = FLOW.default_sigmas(30).double()
    target = anchor_target(lambda z, sigma: (z - x0) / expand(sigma, z), FLOW, eps, sigmas, k_anchor)
    # 1 - t_1 is 0.012: what float64 loses there (1e-16 / 0.012) stays far below 1e-12.
    torch.testing.assert_close(target, eps - x0, rtol=0, atol=1e-12)


def test_anchor_of_all_steps_ends_at_sigma_zero():
    """K = all steps: t_k is 0, z_k is the teacher's image, and the target is eps - z_k."""
    x0, eps, _ = _pair()
    sigmas = FLOW.default_sigmas(5).double()
    seen = []

    def teacher(z, sigma):
        seen.append(sigma.tolist())
        return 0.5 * z + x0

    target = anchor_target(teacher, FLOW, eps, sigmas, 5)
    z = eps
    for index in range(5):
        z = z + (sigmas[index + 1] - sigmas[index]) * (0.5 * z + x0)
    assert seen == [[sigma] * 3 for sigma in sigmas[:-1].tolist()]
    torch.testing.assert_close(target, eps - z, rtol=0, atol=1e-14)


def test_expand_broadcasts_over_samples_not_pixels():
    """[B] must meet the batch axis even if B equals the width: a plain product would scale columns."""
    scaled = expand(torch.tensor([1.0, 2.0]), torch.ones(2, 1, 2, 2)) * torch.ones(2, 1, 2, 2)
    assert scaled.flatten(1).tolist() == [[1] * 4, [2] * 4]
