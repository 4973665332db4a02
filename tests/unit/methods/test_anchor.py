"""The anchor's grid and target. `tests/unit/models` has the target of each schedule in closed form."""

import torch
from torch import nn

from dpdmd.methods.anchor import anchor_grid, anchor_target
from dpdmd.models.noise_schedule import FlowSchedule
from dpdmd.sampling.rollout import rollout

FLOW = FlowSchedule(shift=3.0)
EPS = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class TrainableTeacher(nn.Module):
    """A velocity that depends on z, on sigma and on a weight, and the sigmas that it was called with."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.calls = []

    def forward(self, z: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        self.calls.append(sigma[0].item())
        return torch.tanh(self.weight * z + sigma.reshape(-1, 1, 1, 1))


def test_anchor_target_has_no_gradient_and_takes_k_steps():
    """The target is a constant even of a trainable teacher, and equals (eps - z_k) / (1 - t_k) after K calls."""
    teacher, eps, sigmas = TrainableTeacher(), EPS.clone().requires_grad_(), FLOW.default_sigmas(30).double()
    target = anchor_target(teacher, FLOW, eps, sigmas, 5)
    assert not target.requires_grad
    assert teacher.calls == sigmas[:5].tolist()
    z_k = rollout(teacher, FLOW, eps, sigmas[:6]).x
    # The division by 1 - t_5 = 0.066 brings 1e-16 to about 1e-15.
    torch.testing.assert_close(target, ((eps - z_k) / (1 - sigmas[5])).detach(), rtol=0, atol=1e-13)
    assert teacher.weight.requires_grad  # no_grad left the teacher as it was


def test_a_coarser_grid_ends_at_the_same_anchor():
    """Fewer of the teacher's own sigmas, from 1 to t_k; on a straight flow the target stays exact."""
    sigmas = FLOW.default_sigmas(30)
    assert torch.equal(anchor_grid(sigmas, 20), sigmas[:21]) and torch.equal(anchor_grid(sigmas, 20, 20), sigmas[:21])
    assert torch.equal(anchor_grid(sigmas, 20, 4), sigmas[[0, 5, 10, 15, 20]])
    assert torch.equal(anchor_grid(sigmas, 5, 2), sigmas[[0, 2, 5]]) and len(anchor_grid(sigmas, 20, 1)) == 2
    calls, eps = [], EPS.float()

    def teacher(z, sigma):
        calls.append(sigma[0].item())
        return torch.full_like(z, 0.25)

    target = anchor_target(teacher, FLOW, eps, sigmas, 20, 4)
    torch.testing.assert_close(target, torch.full_like(eps, 0.25), rtol=0, atol=1e-5)
    assert calls == sigmas[[0, 5, 10, 15]].tolist()
