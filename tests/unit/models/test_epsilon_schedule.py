"""Noise algebra and grids of epsilon models: against diffusers' Euler and DDIM, and closed forms in float64."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from torch import Tensor

from dpdmd.methods.anchor import anchor_target
from dpdmd.models.discrete_schedule import EpsilonSchedule
from dpdmd.sampling.rollout import rollout

BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
SDXL = EpsilonSchedule(**BETAS, steps_offset=1)
COMMON = {**BETAS, "beta_schedule": "scaled_linear", "steps_offset": 1}
# diffusers multiplies its 1000 factors in float32, which leaves some 5e-6 of a sigma; we multiply in float64.
RELATIVE = 1e-5


def kept(time: int) -> float:
    """a_t, the product of all 1 - beta up to a time, in Python's floats."""
    low, high = (value**0.5 for value in BETAS.values())
    return math.prod(1 - (low + (high - low) * i / 999) ** 2 for i in range(time + 1))


def pair() -> tuple[Tensor, Tensor]:
    """x0 and eps, [3, 4, 4, 4], float64."""
    return tuple(torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def network(z: Tensor, sigma: Tensor) -> Tensor:
    """Nonlinear in the latent, and different at each sigma."""
    return torch.tanh(0.8 * z + 0.1 * SDXL.times(sigma).reshape(-1, 1, 1, 1).to(z.dtype) / 1000)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_grids_are_the_installed_schedulers(spacing):
    """Guard against a diffusers that changes its grid: times are the same whole numbers, sigmas equal in fp32."""
    scheduler = EulerDiscreteScheduler(**COMMON, timestep_spacing=spacing)
    # One of 48 trailing steps is halfway between two times, and diffusers' sum of fractions rounds it the other way.
    for num_steps in [*range(1, 48), 49, 50, 100, 250]:
        scheduler.set_timesteps(num_steps)
        ours = SDXL.default_sigmas(num_steps) if spacing == "leading" else SDXL.trailing_sigmas(num_steps)
        assert ours.dtype == torch.float32 and ours[-1] == 0 and (ours.diff() < 0).all()
        torch.testing.assert_close(ours, scheduler.sigmas, rtol=RELATIVE, atol=0, msg=f"{num_steps} steps")
        assert torch.equal(SDXL.times(ours[:-1]), scheduler.timesteps), num_steps


def test_quoted_times():
    """First and last times of the default grid with few steps, the trailing grid's, and the 1000 score times."""
    assert SDXL.times(SDXL.default_sigmas(4)[:-1]).tolist() == [751, 501, 251, 1]
    assert SDXL.times(SDXL.default_sigmas(50)[:2]).tolist() == [981, 961]
    assert SDXL.times(SDXL.trailing_sigmas(4)[:-1]).tolist() == [999, 749, 499, 249]
    assert SDXL.times(SDXL.score_sigmas(50)).tolist() == list(range(999, -1, -1))
    assert SDXL.trailing_sigmas(1)[0].item() == pytest.approx(math.sqrt((1 - kept(999)) / kept(999)), rel=1e-6)


def test_times_between_those_of_the_table_are_the_schedulers():
    """For a grid of given numbers diffusers interpolates in log sigma, exact to about 1e-3 of a time in float32."""
    numbers = [14.0, 3.3, 0.5, 0.05, 0.03]
    scheduler = EulerDiscreteScheduler(**COMMON, timestep_spacing="leading")
    scheduler.set_timesteps(sigmas=[*numbers, 0.0])
    torch.testing.assert_close(SDXL.times(torch.tensor(numbers)), scheduler.timesteps, rtol=0, atol=2e-3)
    assert SDXL.times(torch.tensor([20.0, 0.01, 0.0])).tolist() == [999, 0, 0]
    assert SDXL.times(torch.tensor(0.5)).shape == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("15,5,1,0.5", "from 14.6146 \\(time 999\\) at most"),
        ("14,5,1,0.01", "to 0.0292 \\(time 0\\) at least"),
        ("14,5,5,1", "fall strictly"),
        ("14,nan,5,1", "fall strictly"),
        ("14,5", "2 sigmas, but the student takes 4"),
        ("fast", "neither 'default' nor 'trailing'"),
    ],
)
def test_numbers_that_make_no_grid_are_rejected(text, message):
    with pytest.raises(ValueError, match=message):
        SDXL.parse_sigmas(text, 4)


def test_names_and_numbers_give_the_grid_that_they_name():
    assert torch.equal(SDXL.parse_sigmas("default", 4), SDXL.default_sigmas(4))
    assert torch.equal(SDXL.parse_sigmas("trailing", 4), SDXL.trailing_sigmas(4))
    # The ends as `rule` writes them.
    assert torch.equal(SDXL.parse_sigmas("14.6146, 0.0292", 2), torch.tensor([14.6146, 0.0292, 0]))


@pytest.mark.parametrize("steps", [1000, 1001])
def test_more_steps_than_times_are_rejected(steps):
    """With 1000 steps the first two times of the default grid would be equal; with more steps all of them."""
    with pytest.raises(ValueError, match="1000 times"):
        SDXL.default_sigmas(steps)


@pytest.mark.parametrize("time", [0, 1, 500, 999])
def test_algebra_in_terms_of_a(time):
    """z = sqrt(a) x0 + sqrt(1 - a) eps, and x0 comes back from z and the true noise."""
    (x0, eps), a = pair(), kept(time)
    sigma = SDXL.table[time].repeat(3)
    z = SDXL.add_noise(x0, eps, sigma)
    torch.testing.assert_close(z, a**0.5 * x0 + (1 - a) ** 0.5 * eps, rtol=0, atol=1e-12)
    torch.testing.assert_close(SDXL.to_x0(z, SDXL.target(x0, eps, sigma), sigma), x0, rtol=0, atol=1e-12)
    by_hand = (z - (1 - a) ** 0.5 * x0) / a**0.5  # for another prediction than the true one
    torch.testing.assert_close(SDXL.to_x0(z, x0, sigma), by_hand, rtol=1e-12, atol=1e-12)


def test_noising_is_diffusers_own():
    x0, eps = pair()
    times = torch.tensor([3, 400, 999])
    theirs = DDIMScheduler(**COMMON).add_noise(x0, eps, times)
    torch.testing.assert_close(SDXL.add_noise(x0, eps, SDXL.table[times]), theirs, rtol=0, atol=RELATIVE)


def test_a_scalar_sigma_is_for_all_samples_and_zero_is_clean():
    x0, eps = pair()
    assert torch.equal(SDXL.add_noise(x0, eps, torch.tensor(0.0)), x0)
    assert torch.equal(SDXL.to_x0(x0, eps, torch.tensor(0.0)), x0)
    each = SDXL.add_noise(x0, eps, torch.tensor([2.0, 2.0, 2.0]))
    assert torch.equal(SDXL.add_noise(x0, eps, torch.tensor(2.0)), each)


def test_step_follows_the_path_and_solve_step_inverts_it():
    x0, eps = pair()
    sigma_s = torch.tensor([0.1, 1.0, 14.0], dtype=torch.float64)
    sigma_t = sigma_s / 3
    z_s = SDXL.add_noise(x0, eps, sigma_s)
    z_t = SDXL.step(z_s, eps, sigma_s, sigma_t)
    torch.testing.assert_close(z_t, SDXL.add_noise(x0, eps, sigma_t), rtol=0, atol=1e-14)
    anywhere = SDXL.solve_step(z_s, x0, sigma_s, sigma_t)  # not only along the path
    torch.testing.assert_close(SDXL.step(z_s, anywhere, sigma_s, sigma_t), x0, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("spacing", "num_steps"), [("leading", 50), ("leading", 4), ("trailing", 4), ("trailing", 50)])
def test_rollout_is_ddim_and_eulers(spacing, num_steps):
    """One trajectory: DDIM's latents are ours, Euler's are ours times sqrt(1 + sigma^2), and x0 is the same."""
    sigmas = SDXL.default_sigmas(num_steps) if spacing == "leading" else SDXL.trailing_sigmas(num_steps)
    sigmas, start = sigmas.double(), pair()[1]
    ddim = DDIMScheduler(**COMMON, timestep_spacing=spacing, clip_sample=False, set_alpha_to_one=True)
    euler = EulerDiscreteScheduler(**COMMON, timestep_spacing=spacing)
    ddim.set_timesteps(num_steps)
    euler.set_timesteps(num_steps)
    ours = by_ddim = start
    by_euler = start * (1 + sigmas[0] ** 2).sqrt()
    for i in range(num_steps):
        sigma = sigmas[i].repeat(3)
        ours = SDXL.step(ours, network(ours, sigma), sigmas[i], sigmas[i + 1])
        by_ddim = ddim.step(network(by_ddim, sigma), ddim.timesteps[i], by_ddim, eta=0.0).prev_sample
        seen = euler.scale_model_input(by_euler, euler.timesteps[i])
        by_euler = euler.step(network(seen, sigma), euler.timesteps[i], by_euler).prev_sample
        torch.testing.assert_close(ours, by_ddim, rtol=0, atol=10 * RELATIVE)  # x0 has a deviation of about 10
        scaled = by_euler.double() / (1 + sigmas[i + 1] ** 2).sqrt()
        torch.testing.assert_close(ours, scaled, rtol=0, atol=10 * RELATIVE)
    assert torch.equal(ours, rollout(network, SDXL, start, sigmas).x)


@pytest.mark.parametrize("num_steps", [1, 4, 50])
def test_a_point_is_reached_exactly_on_any_grid(num_steps):
    """If all data is one point, eps = (c z - x0) / sigma is the perfect network and every path is straight."""
    x0, start = pair()

    def perfect(z: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        return ((1 + sigma**2).sqrt() * z - x0) / sigma

    for sigmas in (SDXL.default_sigmas(num_steps).double(), SDXL.trailing_sigmas(num_steps).double()):
        torch.testing.assert_close(rollout(perfect, SDXL, start, sigmas).x, x0, rtol=0, atol=1e-12)


def test_gaussian_data_follow_the_exact_ode():
    """For data N(0, s^2) the ODE's solution is c z ~ sqrt(s^2 + sigma^2); 999 Euler steps come within 2%."""
    s, (_, start) = 0.5, pair()

    def perfect(z: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        return sigma * (1 + sigma**2).sqrt() * z / (s**2 + sigma**2)  # E[eps | z]

    sigmas = SDXL.default_sigmas(999).double()
    expected = start * ((1 + sigmas[0] ** 2) * s**2 / (s**2 + sigmas[0] ** 2)).sqrt()
    torch.testing.assert_close(rollout(perfect, SDXL, start, sigmas).x, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("k_anchor", [1, 8, 49])
def test_anchor_is_the_x0_that_the_teacher_implies_there(k_anchor):
    """(z_k - sqrt(1 - a_k) eps_k) / sqrt(a_k), eps_k the teacher's at z_k: K calls up to the anchor and one there."""
    eps, sigmas, seen = pair()[1], SDXL.default_sigmas(50).double(), []

    def teacher(z: Tensor, sigma: Tensor) -> Tensor:
        seen.append(SDXL.times(sigma).tolist())
        return network(z, sigma)

    target = anchor_target(teacher, SDXL, eps, sigmas, k_anchor)
    assert seen == [[981 - 20 * i] * 3 for i in range(k_anchor + 1)]
    z_k, a = rollout(network, SDXL, eps, sigmas[: k_anchor + 1]).x, kept(981 - 20 * k_anchor)
    eps_k = network(z_k, sigmas[k_anchor].repeat(3))
    # The grid's sigmas are fp32: 6e-8 of sigma, up to 14.
    torch.testing.assert_close(target, (z_k - (1 - a) ** 0.5 * eps_k) / a**0.5, rtol=0, atol=1e-5)


def test_anchor_of_all_steps_is_the_teachers_image():
    """At sigma 0 the network is not called: it has no such time."""
    eps, sigmas, calls = pair()[1], SDXL.default_sigmas(5).double(), []

    def teacher(z: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma)
        return network(z, sigma)

    target = anchor_target(teacher, SDXL, eps, sigmas, 5)
    assert torch.equal(target, rollout(network, SDXL, eps, sigmas).x) and len(calls) == 5


def test_what_is_anchored_is_the_x0_at_the_first_time():
    """(eps - sqrt(1 - a_T) prediction) / sqrt(a_T); its gradient on the prediction is -sqrt((1 - a_T) / a_T)."""
    eps, (prediction, _), a = pair()[1], pair(), kept(999)
    prediction.requires_grad_()
    first = SDXL.anchored(eps, prediction, SDXL.table[999])
    torch.testing.assert_close(first, (eps - (1 - a) ** 0.5 * prediction) / a**0.5, rtol=0, atol=1e-11)
    (gradient,) = torch.autograd.grad(first.sum(), prediction)
    torch.testing.assert_close(gradient, torch.full_like(eps, -(((1 - a) / a) ** 0.5)), rtol=1e-12, atol=0)
