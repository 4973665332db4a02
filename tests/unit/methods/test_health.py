"""The measures of a run's health in closed form."""

import pytest
import torch

from dpdmd.methods import losses
from dpdmd.methods.health import SATURATED, anchor_metrics, sample_metrics


def test_statistics_of_samples_and_of_the_teachers_predictions():
    x = torch.tensor([1.0, -1.0, 3.0, -3.0]).repeat(2, 1).reshape(2, 1, 2, 2)
    found = sample_metrics(x, x / 2 + 1)
    # The unbiased estimate: 20 / 3 of the four values of a sample.
    assert found["latent_mean"] == 0 and found["latent_std"].item() == pytest.approx((20 / 3) ** 0.5)
    assert found["latent_mean_real"] == 1
    assert found["latent_std_real"].item() == pytest.approx((5 / 3) ** 0.5)


def test_no_measure_depends_on_how_processes_divide_a_batch():
    random = torch.Generator().manual_seed(0)
    first, second = (torch.randn(4, 2, 4, 4, generator=random) * torch.arange(1, 5).reshape(4, 1, 1, 1) for _ in "ab")
    for measure in (sample_metrics, lambda x, y: anchor_metrics(x, y, 5.0)):
        whole, halves = measure(first, second), [measure(first[i : i + 2], second[i : i + 2]) for i in (0, 2)]
        for name, value in whole.items():
            torch.testing.assert_close(value, (halves[0][name] + halves[1][name]) / 2)


def test_the_share_of_saturated_latents_counts_both_signs_and_not_the_bound():
    x = torch.tensor([0.0, SATURATED, -SATURATED - 0.1, 9.0]).reshape(1, 1, 2, 2)
    assert sample_metrics(x, x)["latent_saturated"] == 0.5


def test_anchor_error_is_relative_and_0_at_the_anchor():
    target = torch.full((2, 1, 2, 2), 2.0)
    assert anchor_metrics(target, target, 5.0) == {"anchor_error": 0, "div_gradient_norm": 0}
    assert anchor_metrics(torch.zeros_like(target), target, 5.0)["anchor_error"] == 1
    assert anchor_metrics(10 * target + 10, 10 * target, 5.0)["anchor_error"] == 0.25


def test_the_gradient_norms_of_both_losses_are_those_of_autograd():
    """Per sample, times numel, as the DMD gradient counts."""
    random = torch.Generator().manual_seed(0)
    x, target, real, fake = (torch.randn(3, 2, 4, 4, generator=random) for _ in range(4))
    x.requires_grad_()
    (5.0 * losses.diversity_loss(x, target) * x.numel()).backward()
    norm = x.grad.flatten(1).norm(dim=1).mean()
    torch.testing.assert_close(anchor_metrics(x, target, 5.0)["div_gradient_norm"], norm)
    x.grad = None
    dmd = losses.dmd_loss(x, real, fake, target)
    (dmd.loss * x.numel()).backward()
    torch.testing.assert_close(dmd.gradient, x.grad)


def test_a_nan_shows():
    """The trainer stops at a metric that is not finite."""
    x = torch.zeros(1, 1, 2, 2)
    x[0, 0, 0, 0] = torch.nan
    assert sample_metrics(x, torch.zeros_like(x))["latent_std"].isnan()
    assert not sample_metrics(x.requires_grad_(), x)["latent_mean"].requires_grad
