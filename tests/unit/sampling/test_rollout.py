"""The guidance formula and the sampler loop, against hand-written loops, closed forms and expected gradients."""

import math

import pytest
import torch
from torch import nn

from dpdmd.models.base import guide
from dpdmd.models.noise_schedule import FlowSchedule
from dpdmd.sampling.rollout import rollout

FLOW = FlowSchedule(shift=3.0)
SIGMAS = FLOW.trailing_sigmas(4).double()
STEPS = SIGMAS.diff().tolist()  # sigma_t - sigma_s of each step, all negative


def _noise(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)


class TinyNetwork(nn.Module):
    """A nonlinear network in fp32: two convolutions of z and sigma."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        level = sigma.reshape(-1, 1, 1, 1).expand(-1, 1, *z.shape[2:])
        return self.second(torch.tanh(self.first(torch.cat([z, level], dim=1))))


def test_guidance_formula():
    """u + s (c - u): scale 0 is unconditional, scale 1 conditional, and the branches are in the right order."""
    u, c = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 2.0])
    assert guide(u, c, 0.0).tolist() == u.tolist()
    assert guide(u, c, 1.0).tolist() == c.tolist()
    assert guide(u, c, 3.5).tolist() == [4.5, 12.0]


def test_rollout_is_the_euler_loop():
    """Every sigma is used once, in order, one per sample, with the velocity of the latent it belongs to."""
    network, z, seen = TinyNetwork().double(), _noise(), []

    def predict(z, sigma):
        seen.append(sigma)
        return network(z, sigma)

    with torch.no_grad():
        result = rollout(predict, FLOW, z, SIGMAS)
        expected, first = z, network(z, torch.ones(2, dtype=torch.float64))
        for index in range(4):
            sigma = SIGMAS[index]
            expected = expected + (SIGMAS[index + 1] - sigma) * network(expected, sigma.repeat(2))
    assert torch.equal(result.x, expected)
    assert torch.equal(result.first_prediction, first)
    assert [sigma.tolist() for sigma in seen] == [[sigma, sigma] for sigma in SIGMAS[:-1].tolist()]


def test_rollout_in_closed_form():
    """For v = a z + b each step is affine: x = prod(1 + a h_i) z + b sum_i h_i prod_(j>i)(1 + a h_j)."""
    a, b, z = 0.7, -0.3, _noise()
    after = [math.prod(1 + a * h for h in STEPS[i + 1 :]) for i in range(4)]
    expected = math.prod(1 + a * h for h in STEPS) * z + b * sum(h * p for h, p in zip(STEPS, after, strict=True))
    x = rollout(lambda z, _: a * z + b, FLOW, z, SIGMAS).x
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-14)  # float64: four steps of about 1e-16


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_of_each_step_scales_with_its_sigma_step(detach):
    """v_i = a z + b_i: dx/db_i is h_i prod_(j>i)(1 + a h_j), and exactly nothing for i = 1 after a detach.

    Guards against a detach in the wrong place, and against predictions that get the gradient of another step.
    """
    a = 0.7
    biases = [torch.tensor(0.1 * i, dtype=torch.float64, requires_grad=True) for i in range(4)]
    rest = iter(biases)
    result = rollout(lambda z, _: a * z + next(rest), FLOW, _noise(), SIGMAS, detach_first_step=detach)
    gradients = torch.autograd.grad(result.x.mean(), biases, allow_unused=True)
    for index, gradient in enumerate(gradients):
        if detach and index == 0:
            assert gradient is None
            continue
        expected = STEPS[index] * math.prod(1 + a * h for h in STEPS[index + 1 :])
        assert gradient.item() == pytest.approx(expected, rel=1e-12)  # a mean over 96 float64 elements


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_of_shared_weights_in_closed_form(detach):
    """For v = a z + b: dz_(i+1) = (1 + a h) dz_i + h z_i for a, and ... + h for b, from 0 where the graph begins."""
    a, b = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.7, -0.3))
    x = rollout(lambda z, _: a * z + b, FLOW, _noise(), SIGMAS, detach_first_step=detach).x
    by_a, by_b = torch.autograd.grad(x.sum(), (a, b))
    z, d_a, d_b = _noise(), torch.zeros(2, 3, 4, 4, dtype=torch.float64), 0.0
    for index, h in enumerate(STEPS):
        z, d_a, d_b = z + h * (0.7 * z - 0.3), (1 + 0.7 * h) * d_a + h * z, (1 + 0.7 * h) * d_b + h
        if detach and index == 0:
            d_a, d_b = torch.zeros_like(d_a), 0.0
    assert by_a.item() == pytest.approx(d_a.sum().item(), rel=1e-12)
    assert by_b.item() == pytest.approx(96 * d_b, rel=1e-12)


def test_gradient_agrees_with_finite_differences():
    """The gradient through all steps of a nonlinear network, in start noise and weights."""
    network = TinyNetwork().double()
    z = _noise()[:1, :, :2, :2].clone().requires_grad_()
    weight = network.second.bias
    assert torch.autograd.gradcheck(lambda z, _: rollout(network, FLOW, z, SIGMAS).x, (z, weight))


def test_detach_keeps_the_loss_on_x_from_the_first_prediction():
    """DMD's gradient on the first prediction is exactly 0, the later ones keep theirs, and x itself is unchanged.

    The heart of the method: without it the DMD gradient undoes the diversity loss (pitfall 10).
    """
    network, results = TinyNetwork(), {}
    for detach in (True, False):
        predictions = []

        def predict(z, sigma, predictions=predictions):
            predictions.append(network(z, sigma))
            predictions[-1].retain_grad()
            return predictions[-1]

        rolled = rollout(predict, FLOW, _noise(torch.float32), SIGMAS.float(), detach_first_step=detach)
        (rolled.x**2).mean().backward()
        results[detach] = rolled.x.detach(), [prediction.grad for prediction in predictions]
        assert rolled.first_prediction is predictions[0]
    assert results[True][1][0] is None
    assert all(gradient.abs().max() > 0 for gradient in results[True][1][1:])
    assert results[False][1][0].abs().max() > 0
    assert torch.equal(results[True][0], results[False][0])


def test_detach_leaves_the_first_prediction_in_the_graph():
    """The diversity loss needs the gradient of the first prediction; the detach must not affect later steps either."""
    network = TinyNetwork()
    rolled = rollout(network, FLOW, _noise(torch.float32), SIGMAS.float(), detach_first_step=True)
    ours = torch.autograd.grad((rolled.first_prediction**2).mean(), network.first.weight)[0]
    alone = torch.autograd.grad((network(_noise(torch.float32), torch.ones(2)) ** 2).mean(), network.first.weight)[0]
    assert torch.equal(ours, alone) and ours.abs().max() > 0


def test_rollouts_with_and_without_gradient_are_bit_equal():
    """The fake score must learn exactly the samples on which the student is scored."""
    network, z, sigmas = TinyNetwork(), _noise(torch.float32), FLOW.default_sigmas(4)
    with torch.no_grad():
        without = rollout(network, FLOW, z, sigmas)
    for detach in (True, False):
        having = rollout(network, FLOW, z, sigmas, detach_first_step=detach)
        assert having.x.requires_grad and not without.x.requires_grad
        assert torch.equal(having.x, without.x)
        assert torch.equal(having.first_prediction, without.first_prediction)


class Linear(nn.Module):
    """v = a z, with an `a` of its own in each step, so that each step has its own gradient."""

    def __init__(self):
        super().__init__()
        self.rates = nn.ParameterList(nn.Parameter(torch.tensor(rate, dtype=torch.float64)) for rate in (1, 2, 3, 4.0))
        self.calls = 0

    def forward(self, z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.rates[self.calls - 1] * z


def linear_gradients(**options) -> list[float | None]:
    network, z = Linear(), torch.ones(1, 1, 1, 1, dtype=torch.float64)
    rollout(network, FLOW, z, SIGMAS, **options).x.sum().backward()
    return [rate.grad.item() if rate.grad is not None else None for rate in network.rates]


def test_kept_steps_have_the_closed_form_gradient():
    """x = prod (1 + d_i a_i); a kept step alone is d_k z_k, since the others' predictions are constants."""
    d, a = SIGMAS.diff().tolist(), (1.0, 2.0, 3.0, 4.0)
    factors = [1 + step * rate for step, rate in zip(d, a, strict=True)]
    z = [math.prod(factors[:index]) for index in range(4)]
    after = [math.prod(factors[index + 1 :]) for index in range(4)]
    assert linear_gradients() == pytest.approx([d[i] * z[i] * after[i] for i in range(4)])
    for kept in range(4):
        expected = [None] * 4
        expected[kept] = pytest.approx(d[kept] * z[kept])
        assert linear_gradients(gradient_steps={kept}) == expected
    assert linear_gradients(detach_first_step=True)[0] is None
    # x0 = (1 - sigma_k a_k) z_k in one jump
    sigma = SIGMAS.tolist()
    assert linear_gradients(jump_at=2) == [None, None, pytest.approx(-sigma[2] * z[2]), None]


def test_a_jump_from_the_last_step_is_the_whole_roll_out():
    network, z = Linear(), _noise()
    whole = rollout(network, FLOW, z, SIGMAS)
    network.calls = 0
    torch.testing.assert_close(rollout(network, FLOW, z, SIGMAS, jump_at=3).x, whole.x)
