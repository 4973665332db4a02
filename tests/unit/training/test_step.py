"""One update: what is not finite moves nothing, whether the host decides or the optimizer's kernel."""

import pytest
import torch

from dpdmd.distributed import sharding
from dpdmd.training.step import StepMetrics, TrainedNetwork, apply_update, skips_on_device


@pytest.mark.parametrize("fused", [True, None])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_metric_that_is_not_finite_moves_nothing(fused, bad):
    """Neither weights nor moments nor their count; the next update is what it would have been without the bad one."""

    def trained_network() -> TrainedNetwork:
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1, fused=fused)
        return TrainedNetwork(torch.nn.Identity(), optimizer, [weight], 0.1)

    def take(trained: TrainedNetwork, loss: float) -> None:
        (weight,) = trained.parameters
        weight.grad = torch.arange(5.0) * loss
        norm = sharding.gradient_norm(trained.parameters)
        metrics = StepMetrics(["loss", "grad_norm"], torch.stack([torch.tensor(loss), norm]))
        assert metrics.nonfinite == float(not torch.tensor(loss).isfinite())
        apply_update(trained, metrics, norm, 0.1, max_norm=1.0)

    spared, other = trained_network(), trained_network()
    assert skips_on_device(spared.optimizer) == bool(fused)
    for loss in (1.0, bad, 2.0):
        take(spared, loss)
    for loss in (1.0, 2.0):
        take(other, loss)
    assert torch.equal(spared.parameters[0], other.parameters[0])
    ours, theirs = (trained.optimizer.state[trained.parameters[0]] for trained in (spared, other))
    assert ours["step"] == theirs["step"] == 2
    assert torch.equal(ours["exp_avg"], theirs["exp_avg"]) and torch.equal(ours["exp_avg_sq"], theirs["exp_avg_sq"])


@pytest.mark.parametrize(("max_norm", "share"), [(2.5, 0.5), (10.0, 1.0)])
def test_gradients_are_clipped_to_their_norm_over_all_parameters(max_norm, share):
    """Gradients 3 and 4 have norm 5; SGD moves each parameter by its clipped gradient times the rate."""
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    trained = TrainedNetwork(torch.nn.Identity(), torch.optim.SGD(parameters, 1.0), parameters, 1.0)
    for parameter, gradient in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([gradient])
    norm = sharding.gradient_norm(parameters)
    assert norm.item() == 5
    apply_update(trained, StepMetrics(["grad_norm"], torch.stack([norm])), norm, 0.1, max_norm=max_norm)
    moved = [parameter.item() for parameter in parameters]
    assert moved == pytest.approx([-0.3 * share, -0.4 * share], rel=1e-5)
