"""The 8-bit optimizer: learns like AdamW in a quarter of its memory, and its state is restored bit for bit."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dpdmd.config.options import OptimConfig
from dpdmd.training import optimizer_state
from dpdmd.training.optimizers import make_optimizer

pytest.importorskip("bitsandbytes", reason="pip install -e '.[memory]'")
CPU = torch.device("cpu")
EIGHT = OptimConfig(optimizer="adamw_8bit")


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 64))


def train(trained: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> float:
    for step in steps:
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
        loss = (trained(x) - x.flip(1)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss.item()


def test_it_learns_as_adamw_does():
    found = {}
    for name in ("adamw", "adamw_8bit"):
        trained = network()
        found[name] = train(
            trained, make_optimizer(trained.parameters(), OptimConfig(optimizer=name), 1e-3, CPU), range(200)
        )
    assert found["adamw_8bit"] == pytest.approx(found["adamw"], rel=0.05)
    assert found["adamw"] < 0.8 * train(network(), torch.optim.SGD(network().parameters(), 0.0), range(199, 200))


def test_its_state_takes_a_quarter():
    trained = network()
    optimizer = make_optimizer(trained.parameters(), EIGHT, 1e-3, CPU)
    train(trained, optimizer, range(1))
    weight = trained[0].weight
    kept = sum(v.nbytes for k, v in optimizer.state[weight].items() if torch.is_tensor(v) and not k.startswith("qmap"))
    assert kept == weight.numel() * 2 * (1 + 4 / 256)


def test_it_resumes_bit_for_bit_from_safetensors(tmp_path: Path):
    trained = network()
    optimizer = make_optimizer(trained.parameters(), EIGHT, 1e-3, CPU)
    train(trained, optimizer, range(5))
    save_file(optimizer_state.whole_optimizer_state(trained, optimizer), tmp_path / "optimizer.safetensors")
    resumed = copy.deepcopy(trained)
    train(trained, optimizer, range(5, 10))
    again = make_optimizer(resumed.parameters(), EIGHT, 1e-3, CPU)
    optimizer_state.restore_optimizer_state(resumed, again, load_file(tmp_path / "optimizer.safetensors"))
    train(resumed, again, range(5, 10))
    for ours, theirs in zip(trained.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    fresh = make_optimizer(resumed.parameters(), EIGHT, 1e-3, CPU)
    assert optimizer_state.whole_optimizer_state(resumed, fresh) == {}


def test_state_of_another_network_is_refused():
    trained = network()
    optimizer = make_optimizer(trained.parameters(), EIGHT, 1e-3, CPU)
    with pytest.raises(ValueError, match="another network's parameters"):
        optimizer_state.restore_optimizer_state(trained, optimizer, {"9.weight|state1": torch.zeros(1)})
