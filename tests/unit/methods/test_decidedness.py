"""Decidedness and spread: closed forms, and the anchors of the diversity loss itself."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dpdmd.config.anchor_search import LATENTS
from dpdmd.methods import decidedness
from dpdmd.methods.anchor import anchor_target
from dpdmd.methods.decidedness import (
    CurveSettings,
    anchor_calls,
    compare_ends,
    curve_steps,
    measure_curves,
    smallest_decided,
    straight_line_ends,
)
from dpdmd.models.base import TextEmbedding
from dpdmd.models.discrete_schedule import EpsilonSchedule
from dpdmd.models.noise_schedule import FlowSchedule, Predictor, Schedule, expand
from dpdmd.sampling.rollout import rollout
from dpdmd.sampling.sampler import Sampler, SamplerSettings

FLOW, SDXL = FlowSchedule(shift=3.0), EpsilonSchedule(0.00085, 0.012, 1)
SHAPE = (4, 6, 6)
TEXT = TextEmbedding(torch.zeros(1, 3, 5), torch.zeros(1, 7))


def make_sampler(predict: Predictor, schedule: Schedule, num_steps: int = 12) -> Sampler:
    """Return a sampler of a teacher that is a function of (z, sigma)."""
    family = SimpleNamespace(bind_guided=lambda *_: predict, device=torch.device("cpu"))
    decoder = SimpleNamespace(latent_shape=lambda *_: SHAPE)
    settings = SamplerSettings(schedule.default_sigmas(num_steps), 3.5, 48, 48)
    return Sampler(family, None, schedule, decoder, TEXT, settings)


def straight(z: Tensor, sigma: Tensor) -> Tensor:
    """Velocity of a flow on which each eps goes straight to x0 = eps / 2 + 3."""
    sigma = expand(sigma, z)
    eps = (z - 3 * (1 - sigma)) / ((1 - sigma) / 2 + sigma)
    return eps - (eps / 2 + 3)


def bent(z: Tensor, sigma: Tensor) -> Tensor:
    """A prediction that turns along the way, and mixes pixels."""
    return torch.tanh(z.roll(1, -1) * (2 - expand(sigma, z).clamp(max=1))) + 0.3 * z


def measure(sampler: Sampler, **options) -> decidedness.Curve:
    """Measure one prompt in latents."""
    steps = curve_steps(len(sampler.settings.sigmas) - 1)
    settings = CurveSettings(steps, LATENTS, **{"num_seeds": 7, "batch_size": 3, **options})
    encoder = SimpleNamespace(encode=lambda prompts: TEXT)
    return measure_curves(sampler, encoder, [(5, "a prompt")], settings, progress=False)[5]


def test_on_a_linear_flow_the_first_step_decides_everything():
    """The straight line is exact at any K: it ends at x0 = eps / 2 + 3, so D = S = 1."""
    eps = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    sampler = make_sampler(straight, FLOW)
    ends = straight_line_ends(sampler, TEXT.expand(3), eps, curve_steps(12))
    # 1 - t_1 is 0.03: what fp32 loses there (1e-7 / 0.03) stays below 1e-4.
    torch.testing.assert_close(ends, (eps / 2 + 3).expand_as(ends), rtol=0, atol=1e-4)
    curve = measure(sampler)
    assert curve.decidedness == pytest.approx([1.0] * 12, abs=1e-6) and curve.spread == pytest.approx([1.0] * 12, 1e-4)


def test_a_teacher_of_two_values_decides_between_them_on_the_way():
    """Each pixel of x0 is 1 or -1: E[x0 | z] = tanh((1 - t) z / t^2). The first step points at their mean, 0."""

    def teacher(z: Tensor, sigma: Tensor) -> Tensor:
        sigma = expand(sigma, z)
        return (z - torch.tanh((1 - sigma) * z / sigma**2)) / sigma

    curve = measure(make_sampler(teacher, FLOW))
    assert curve.spread[0] < 1e-4 and curve.spread[1] < 0.2 < 0.8 < curve.spread[-2]
    for values in (curve.decidedness, curve.spread):
        assert list(values[1:]) == sorted(values[1:]) and values[-1] == 1
    assert curve.decidedness[1] < 0.9 < curve.decidedness[-2]


@pytest.mark.parametrize("schedule", [FLOW, SDXL], ids=["flow", "epsilon"])
def test_the_ends_are_what_the_diversity_loss_teaches_the_first_prediction_to_point_at(schedule):
    """One way of the teacher, N calls, gives the anchors of all K that `anchor_target` makes one by one."""
    calls = []

    def teacher(z: Tensor, sigma: Tensor) -> Tensor:
        calls.append(sigma)
        return bent(z, sigma)

    sampler = make_sampler(teacher, schedule)
    eps = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    ends = straight_line_ends(sampler, TEXT.expand(2), eps, curve_steps(12))
    assert len(calls) == 12
    sigmas = sampler.settings.sigmas
    for end, k in zip(ends, curve_steps(12), strict=True):
        target = anchor_target(bent, schedule, eps, sigmas, k)
        torch.testing.assert_close(end, schedule.anchored_x0(eps, target, sigmas[0]), rtol=1e-5, atol=1e-5)
    assert torch.equal(ends[-1], rollout(bent, schedule, eps, sigmas).x)
    some = straight_line_ends(sampler, TEXT.expand(2), eps, (1, 5, 12))
    assert torch.equal(some, ends[[0, 4, 11]])


@pytest.mark.parametrize("schedule", [FLOW, SDXL], ids=["flow", "epsilon"])
def test_anchored_x0_undoes_anchored(schedule):
    """If the student matches its target, the x0 of its prediction is x_hat_K."""
    eps, prediction = torch.randn(2, 2, *SHAPE, generator=torch.Generator().manual_seed(2))
    sigma = schedule.default_sigmas(4)[0]
    back = schedule.anchored_x0(eps, schedule.anchored(eps, prediction, sigma), sigma)
    assert torch.equal(back, schedule.to_x0(eps, prediction, sigma))


def test_decidedness_is_the_cosine_and_spread_the_ratio_of_sizes():
    """Of 2 x 2 pixels centred over four seeds: the same, half as large, mirrored, of other pixels, and none."""
    finals = torch.tensor([[1.0, 0, 0, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, -1, 0, 0]]).reshape(4, 1, 2, 2)
    mean = torch.tensor([5.0, 7, 2, 1]).reshape(1, 1, 2, 2)  # what all seeds share does not count
    assert compare_ends(finals + mean, finals) == pytest.approx((1, 1))
    assert compare_ends(finals / 2 + mean, finals) == pytest.approx((1, 0.5))
    assert compare_ends(mean - finals, finals) == pytest.approx((-1, 1))
    assert compare_ends(finals.roll(1, 2), finals) == pytest.approx((0, 1))
    assert compare_ends(mean.expand(4, 1, 2, 2), finals) == pytest.approx((0, 0))
    turned = torch.stack([finals[0] + finals[2], finals[1] + finals[3]])  # by 45 degrees
    assert compare_ends(turned, finals[:2]) == pytest.approx((0.5**0.5, 2**0.5))


def test_the_curve_does_not_depend_on_the_batches_and_follows_the_seed():
    sizes = set()

    def teacher(z: Tensor, sigma: Tensor) -> Tensor:
        sizes.add(len(z))
        return bent(z, sigma)

    one, other = measure(make_sampler(teacher, SDXL)), measure(make_sampler(bent, SDXL), batch_size=7)
    assert sizes == {3}  # 7 seeds: also in the last call
    assert one.decidedness == pytest.approx(other.decidedness, abs=1e-6)
    assert measure(make_sampler(bent, SDXL), seed=1).decidedness != one.decidedness


@pytest.mark.parametrize(
    ("scale", "says"),
    [(1.0, "prompt 'a prompt': the teacher's samples of all seeds are equal"), (float("nan"), "are not finite")],
)
def test_a_teacher_without_variety_or_with_broken_weights_is_an_error(scale, says):
    def teacher(z: Tensor, sigma: Tensor) -> Tensor:  # goes straight to 3, up to rounding
        return scale * (z - 3) / expand(sigma, z)

    with pytest.raises(ValueError, match=says):
        measure(make_sampler(teacher, FLOW))


def test_the_smallest_k_above_the_threshold():
    steps, values = (1, 2, 5, 9), (0.3, 0.8, 0.95, 1.0)
    found = [smallest_decided(steps, values, threshold) for threshold in (0.1, 0.8, 0.81, 0.95, 0.96)]
    assert found == [1, 2, 5, 5, 9]
    assert smallest_decided(steps, (0.3, 0.8, 0.9, 0.98), 0.99) == 9  # rounding must not leave none
    assert smallest_decided(steps, values, 0.5, anchor_steps=4) == 4
    assert smallest_decided(steps, values, 0.9, anchor_steps=4) == 5


def test_the_curve_has_few_values_of_k_however_many_steps_there_are():
    assert curve_steps(1) == (1,) and curve_steps(30) == tuple(range(1, 31))
    many = curve_steps(1000)
    assert len(many) == len(set(many)) == decidedness.MAX_CURVE and (many[0], many[-1]) == (1, 1000)


@pytest.mark.parametrize(
    ("schedule", "k", "anchor_steps", "calls"),
    [
        (FLOW, 5, None, 5),
        (FLOW, 12, None, 12),
        (FLOW, 10, 4, 4),
        (SDXL, 5, None, 6),  # one more at the anchor
        (SDXL, 12, None, 12),
        (SDXL, 10, 4, 5),
    ],
)
def test_the_cost_of_an_anchor(schedule, k, anchor_steps, calls):
    assert anchor_calls(schedule, schedule.default_sigmas(12), k, anchor_steps) == calls
