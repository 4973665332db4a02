"""Noise algebra and grids of v-prediction: against diffusers' Euler and DDIM, and closed forms in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor

from dpdmd.methods.anchor import anchor_target
from dpdmd.models.discrete_schedule import DiscreteSchedule, EpsilonSchedule, VPredictionSchedule
from dpdmd.sampling.rollout import rollout

BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
COMMON = {**BETAS, "beta_schedule": "scaled_linear", "steps_offset": 1, "prediction_type": "v_prediction"}
ZERO, PLAIN = (VPredictionSchedule(**BETAS, steps_offset=1, zero_snr=zero) for zero in (True, False))
both = pytest.mark.parametrize("schedule", [ZERO, PLAIN], ids=["zero SNR", "plain"])
# diffusers makes its table of zero SNR in float32, which leaves 2e-5 of the largest sigmas.
RELATIVE = {ZERO: 3e-5, PLAIN: 1e-5}


def pair() -> tuple[Tensor, Tensor]:
    """x0 and eps, [3, 4, 4, 4], float64."""
    return tuple(torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def network_of(schedule: DiscreteSchedule) -> Callable[[Tensor, Tensor], Tensor]:
    """Nonlinear in the latent, and different at each sigma."""
    return lambda z, sigma: torch.tanh(0.8 * z + schedule.times(sigma).reshape(-1, 1, 1, 1).to(z.dtype) / 1e4)


@both
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_grids_are_the_installed_schedulers(schedule, spacing):
    ours = VPredictionSchedule(**BETAS, steps_offset=1, spacing=spacing, zero_snr=schedule is ZERO)
    theirs = EulerDiscreteScheduler(**COMMON, timestep_spacing=spacing, rescale_betas_zero_snr=schedule is ZERO)
    for num_steps in (1, 2, 3, 4, 7, 28, 30, 48, 50, 100):
        theirs.set_timesteps(num_steps)
        grid = ours.default_sigmas(num_steps)
        torch.testing.assert_close(grid, theirs.sigmas, rtol=RELATIVE[schedule], atol=0, msg=f"{num_steps} steps")
        assert torch.equal(ours.times(grid[:-1]), theirs.timesteps), num_steps


@pytest.mark.parametrize("num_steps", [61, 1001])
def test_numbers_of_steps_that_diffusers_counts_otherwise_are_rejected(num_steps):
    """For 61 steps diffusers' arange in fractions has 62 entries, the last one time -1."""
    with pytest.raises(ValueError, match="take another number"):
        VPredictionSchedule(**BETAS, steps_offset=1, spacing="trailing").default_sigmas(num_steps)


def test_zero_terminal_snr_ends_in_noise_alone():
    """The first time keeps its sigma, the last one has the signal 2^-12: sigma is 4096."""
    assert ZERO.table[0].item() == pytest.approx(PLAIN.table[0].item(), rel=1e-12)
    assert ZERO.table[-1].item() == pytest.approx(math.sqrt(2**24 - 1), rel=1e-12)
    assert ZERO.predicts == "v at zero terminal SNR" and PLAIN.predicts == "v"
    assert ZERO.parse_sigmas("4096,2.5", 2).tolist() == [4096, 2.5, 0]
    assert ZERO.times(torch.tensor([4096.0])).tolist() == [999]
    with pytest.raises(ValueError, match=r"from 4095\.9999 \(time 999\) at most"):
        ZERO.parse_sigmas("4100,2.5", 2)


@both
@pytest.mark.parametrize("time", [0, 500, 998, 999])
def test_algebra_in_terms_of_a(schedule, time):
    """v = sqrt(a) eps - sqrt(1 - a) x0, which with z gives x0 back, in fp32 too."""
    (x0, eps), sigma = pair(), schedule.table[time].repeat(3)
    a = 1 / (1 + sigma[0] ** 2)
    z, v = schedule.add_noise(x0, eps, sigma), schedule.target(x0, eps, sigma)
    torch.testing.assert_close(z, a**0.5 * x0 + (1 - a) ** 0.5 * eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(v, a**0.5 * eps - (1 - a) ** 0.5 * x0, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.to_x0(z, v, sigma), x0, rtol=0, atol=1e-12)
    rounded = schedule.to_x0(z.float(), v.float(), sigma.float())
    torch.testing.assert_close(rounded.double(), x0, rtol=0, atol=2e-6)


def test_noising_and_the_target_are_diffusers_own():
    x0, eps = pair()
    times, ddim = torch.tensor([3, 400, 999]), DDIMScheduler(**COMMON)
    noised = ddim.add_noise(x0, eps, times)
    torch.testing.assert_close(PLAIN.add_noise(x0, eps, PLAIN.table[times]), noised, rtol=0, atol=1e-5)
    theirs = ddim.get_velocity(x0, eps, times)
    torch.testing.assert_close(PLAIN.target(x0, eps, PLAIN.table[times]), theirs, rtol=0, atol=1e-5)


@both
def test_step_follows_the_path_and_solve_step_inverts_it(schedule):
    (x0, eps), sigma_s = pair(), schedule.table[[5, 500, 999]]
    sigma_t = sigma_s / 3
    z_s = schedule.add_noise(x0, eps, sigma_s)
    z_t = schedule.step(z_s, schedule.target(x0, eps, sigma_s), sigma_s, sigma_t)
    torch.testing.assert_close(z_t, schedule.add_noise(x0, eps, sigma_t), rtol=0, atol=1e-11)
    anywhere = schedule.solve_step(z_s, x0, sigma_s, sigma_t)  # not only along the path
    torch.testing.assert_close(schedule.step(z_s, anywhere, sigma_s, sigma_t), x0, rtol=0, atol=1e-11)


@both
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_rollout_is_eulers(schedule, spacing):
    """Euler's latents are ours times sqrt(1 + sigma^2), from the start that the pipeline's init_noise_sigma gives."""
    ours = VPredictionSchedule(**BETAS, steps_offset=1, spacing=spacing, zero_snr=schedule is ZERO)
    theirs = EulerDiscreteScheduler(**COMMON, timestep_spacing=spacing, rescale_betas_zero_snr=schedule is ZERO)
    theirs.set_timesteps(6)
    network, sample = network_of(ours), pair()[1] * theirs.init_noise_sigma.double()
    for time in theirs.timesteps:
        seen = theirs.scale_model_input(sample, time)
        sample = theirs.step(network(seen, theirs.sigmas[theirs.step_index].repeat(3)), time, sample).prev_sample
    found = rollout(network, ours, pair()[1], ours.default_sigmas(6).double()).x
    torch.testing.assert_close(found, sample.double(), rtol=0, atol=2e-4 if schedule is ZERO else 1e-5)
    assert (ours.start(torch.ones(1), ours.default_sigmas(6)[0]) < 0.999) == (
        spacing == "trailing" and schedule is PLAIN
    )


@pytest.mark.parametrize("num_steps", [2, 4])
def test_no_digits_are_lost_from_noise_alone_on(num_steps):
    """In fp32 our trajectory is float64's; diffusers' differs by some 1e-4, since its sample there is 4096 times z."""
    network, start, sigmas = network_of(ZERO), pair()[1], ZERO.trailing_sigmas(num_steps)
    exact = rollout(network, ZERO, start, sigmas.double()).x
    ours = rollout(network, ZERO, start.float(), sigmas).x
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=3e-6)
    theirs = EulerDiscreteScheduler(**COMMON, timestep_spacing="trailing", rescale_betas_zero_snr=True)
    theirs.set_timesteps(num_steps)
    sample = start.float() * theirs.init_noise_sigma
    for sigma, time in zip(sigmas, theirs.timesteps, strict=False):
        prediction = network(theirs.scale_model_input(sample, time), sigma.repeat(3))
        sample = theirs.step(prediction, time, sample).prev_sample
    assert 1e-5 < (sample.double() - exact).abs().max() < 5e-4


@both
@pytest.mark.parametrize("num_steps", [1, 4, 50])
def test_a_point_is_reached_exactly_on_any_grid(schedule, num_steps):
    """If all data is one point, v of this point and the eps that z then implies is the perfect network."""
    x0, start = pair()

    def perfect(z: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        c = (1 + sigma**2).sqrt()
        return ((c * z - x0) / sigma - sigma * x0) / c

    for sigmas in (schedule.default_sigmas(num_steps).double(), schedule.trailing_sigmas(num_steps).double()):
        torch.testing.assert_close(rollout(perfect, schedule, start, sigmas).x, x0, rtol=0, atol=1e-10)


@pytest.mark.parametrize("k_anchor", [1, 8, 28])
def test_anchor_and_students_first_step_are_x0_as_with_noise_prediction(k_anchor):
    """A network that predicts v and one that predicts the same noise have one anchor and one x0 at the first time."""
    noise, network = EpsilonSchedule(**BETAS, steps_offset=1), network_of(PLAIN)

    def as_noise(z: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, 1, 1, 1)
        return (s * z + network(z, sigma)) / (1 + s**2).sqrt()

    eps, sigmas = pair()[1], PLAIN.default_sigmas(28).double()
    ours = anchor_target(network, PLAIN, eps, sigmas, k_anchor)
    torch.testing.assert_close(ours, anchor_target(as_noise, noise, eps, sigmas, k_anchor), rtol=0, atol=1e-10)
    first = sigmas[0].repeat(3)
    by_v = PLAIN.anchored(eps, network(eps, first), sigmas[0])
    torch.testing.assert_close(by_v, noise.anchored(eps, as_noise(eps, first), sigmas[0]), rtol=0, atol=1e-10)


def test_from_noise_alone_the_students_x0_is_minus_v():
    """Its gradient on the prediction is -1: the weight of the diversity loss is that of a flow, not 4096^2 times it."""
    eps, prediction = pair()[1], pair()[0].requires_grad_()
    first = ZERO.anchored(eps, prediction, ZERO.table[-1])
    torch.testing.assert_close(first, -prediction, rtol=0, atol=1e-3)
    (gradient,) = torch.autograd.grad(first.sum(), prediction)
    torch.testing.assert_close(gradient, torch.full_like(eps, -1.0), rtol=1e-6, atol=0)
