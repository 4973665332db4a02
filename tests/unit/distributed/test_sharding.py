"""Gradient norms and unsharded state dicts in one process. `tests/processes` has the same over shards."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dpdmd.distributed import sharding


@pytest.fixture
def network() -> nn.Module:
    """One weight [2] = (3, 0), one bias [1] = 4, a buffer, and a weight without gradient."""
    network = nn.Module()
    network.weight, network.bias = nn.Parameter(torch.tensor([3.0, 0.0])), nn.Parameter(torch.tensor([4.0]))
    network.unused = nn.Parameter(torch.tensor([7.0]))
    network.register_buffer("table", torch.tensor([1.0]))
    (network.weight.square().sum() / 2 + network.bias.square().sum() / 2).backward()  # each gradient is the weight
    return network


@pytest.mark.parametrize(("max_norm", "scale"), [(10.0, 1.0), (2.5, 0.5)])
def test_gradients_are_clipped_by_the_norm_of_all_of_them(network, max_norm, scale):
    parameters = list(network.parameters())
    norm = sharding.gradient_norm(parameters)
    assert norm.item() == 5
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    torch.testing.assert_close(network.weight.grad, scale * torch.tensor([3.0, 0.0]))
    torch.testing.assert_close(network.bias.grad, scale * torch.tensor([4.0]))
    assert network.unused.grad is None


def test_a_networks_state_is_a_copy_that_restores_it(network):
    """On a CPU torch returns the live tensors: training on would change a checkpoint that is being written."""
    state = sharding.whole_network_state(network)
    assert state.keys() == {"weight", "bias", "unused", "table"}
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            tensor.add_(1)
    assert state["weight"].tolist() == [3, 0] and state["table"].tolist() == [1]
    sharding.restore_network_state(network, state)
    assert network.weight.tolist() == [3, 0] and network.table.tolist() == [1]
    assert state["weight"].data_ptr() != network.weight.data_ptr()


def test_restoring_is_strict(network):
    """torch keeps the network's own weight where one is missing, so half a checkpoint would load."""
    state = sharding.whole_network_state(network)
    with pytest.raises(ValueError, match=r"1 weights are missing \(bias"):
        sharding.restore_network_state(network, {name: state[name] for name in ("weight", "unused", "table")})
    with pytest.raises(RuntimeError, match="more"):
        sharding.restore_network_state(network, {**state, "more": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="weight"):
        sharding.restore_network_state(network, {**state, "weight": torch.zeros(3)})


@pytest.fixture
def one_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_fsdp_holds_no_whole_gradients_between_micro_batches():
    """Whole fp32 gradients of Qwen-Image are 81 GB."""
    network = nn.Linear(3, 2)
    whole = copy.deepcopy(network)
    fully_shard(network, mesh=init_device_mesh("cpu", (1,)))
    for index, x in enumerate(torch.ones(2, 1, 3) * torch.tensor([1.0, 2.0])[:, None, None]):
        with sharding.synchronise_when([network], index == 1):
            network(x).square().sum().backward()
        whole(x).square().sum().backward()
        assert isinstance(network.weight.grad, DTensor)  # None until FSDP2 shards it
        torch.testing.assert_close(network.weight.grad.full_tensor(), whole.weight.grad)


@pytest.mark.usefixtures("one_process")
def test_ddp_averages_gradients_once_an_update():
    network = DistributedDataParallel(nn.Linear(3, 2))
    for condition in (False, True):
        with sharding.synchronise_when([network], condition):
            assert network.require_backward_grad_sync is condition


def test_only_shared_memory_is_copied():
    live, other = torch.zeros(4), torch.zeros(4)
    state = sharding.copy_shared({"view": live[1:], "other": other}, [live, 3])
    assert state["other"] is other and state["view"].data_ptr() != live[1:].data_ptr()
