"""Learning rates: against diffusers' own schedules, and in closed form."""

import math

import pytest
import torch
from diffusers.optimization import get_scheduler

from dpdmd.config.options import LR_SCHEDULERS, OptimConfig
from dpdmd.training.lr_schedules import learning_rate, lr_factor


@pytest.mark.parametrize("name", LR_SCHEDULERS)
@pytest.mark.parametrize(("cycles", "power"), [(1, 1.0), (3, 2.5)])
@pytest.mark.parametrize("full", [1.0, 1e-5])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (10, 0), (10, 3), (1000, 100), (7, 6)])
def test_the_curves_are_those_of_diffusers_names(name, cycles, power, full, total, warmup):
    """`--lr_scheduler cosine` here is `--lr_scheduler cosine` in diffusers' training scripts."""
    given = "constant_with_warmup" if name == "constant" else name
    config = OptimConfig(lr_scheduler=name, lr_warmup_steps=warmup, lr_num_cycles=cycles, lr_power=power)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=full)
    scheduler = get_scheduler(
        given, optimizer, num_warmup_steps=warmup, num_training_steps=total, num_cycles=cycles, power=power
    )
    for update in range(total):
        assert learning_rate(full, config, update, total) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12 * full)
        optimizer.step()
        scheduler.step()


def test_known_places_of_the_curves():
    assert lr_factor("constant", 5, 10, 0) == 1.0
    assert [lr_factor("constant", update, 10, 4) for update in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert lr_factor("linear", 6, 10, 2) == 0.5 and lr_factor("linear", 10, 10, 2) == 0
    assert lr_factor("cosine", 6, 10, 2) == pytest.approx(0.5)
    assert lr_factor("cosine", 4, 10, 2) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert lr_factor("linear", 20, 10, 0) == lr_factor("cosine", 10, 10, 0) == 0
    assert [lr_factor("cosine_with_restarts", update, 8, 0, cycles=2) for update in (0, 2, 4, 6)] == pytest.approx(
        [1, 0.5, 1, 0.5]
    )
    assert lr_factor("cosine_with_restarts", 8, 8, 0, cycles=2) == 0
    assert lr_factor("polynomial", 5, 10, 0, power=2, end=0.1) == pytest.approx(0.1 + 0.9 / 4)
    assert lr_factor("polynomial", 20, 10, 0, end=0.1) == 0.1
    with pytest.raises(ValueError, match="piecewise_constant"):
        lr_factor("piecewise_constant", 5, 10, 0)
