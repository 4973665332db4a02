"""AdamW has the settings of the flags."""

import torch

from dpdmd.config.options import OptimConfig
from dpdmd.training.optimizers import make_optimizer


def test_the_optimizer_has_the_settings_of_its_flags():
    optim = OptimConfig(adam_beta1=0.8, adam_beta2=0.95, weight_decay=0.1)
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1))], optim, 3e-4, torch.device("cpu"))
    (group,) = optimizer.param_groups
    assert (group["betas"], group["weight_decay"], group["lr"]) == ((0.8, 0.95), 0.1, 3e-4)
