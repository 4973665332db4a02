"""Networks over several processes: wrapping, sharding, gradient norms, and unsharded state dicts."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from dpdmd.distributed.topology import DDP_OPTIONS

FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_fsdp(accelerator: Accelerator) -> bool:
    """Return whether the launch is FSDP."""
    return accelerator.distributed_type is DistributedType.FSDP


def prepare(
    accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer, *, whole: bool
) -> tuple[nn.Module, Any]:
    """Place and wrap one trained network and its optimizer. Collective: call on every rank.

    With FSDP2, accelerate takes one network for each call. A `whole` network is not sharded; DDP averages gradients.
    """
    if whole and is_fsdp(accelerator):
        return DistributedDataParallel(network.to(accelerator.device), **DDP_OPTIONS), optimizer
    return accelerator.prepare(network, optimizer)


def shard_frozen(network: nn.Module, block_classes: Sequence[str], device: torch.device) -> None:
    """Shard the frozen weights of a network, block by block, in place. Collective: call on every rank.

    Unlike `prepare`, this needs no optimizer and adds the network to no checkpoint. The network may lie on the CPU: its
    blocks are moved to `device` one by one, so no process holds the whole network there. Weights that are trained
    (adapters) stay whole, and move to `device` too.
    """
    trained = {parameter for parameter in network.parameters() if parameter.requires_grad}
    for parameter in trained:
        parameter.data = parameter.data.to(device)
    for module in network.modules():
        if type(module).__name__ in block_classes:
            fully_shard(module, ignored_params=trained)
    fully_shard(network, ignored_params=trained)


def reshard(network: nn.Module) -> None:
    """Free gathered weights, so that the next call gathers them anew: for shards that were changed by hand.

    Without `reshard_after_forward` a call without a backward pass leaves its weights gathered.
    """
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def synchronise_when(networks: Sequence[nn.Module], condition: bool) -> Iterator[None]:
    """Average the gradients of a backward pass over processes only if `condition` is true.

    FSDP2 averages after each backward pass. Until it does, it keeps the whole network's gradients on every process.
    """
    with ExitStack() as stack:
        if not condition:
            for network in networks:
                if isinstance(network, DistributedDataParallel):
                    stack.enter_context(network.no_sync())
        yield


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Return the 2-norm of all gradients over all shards, a plain scalar tensor. Collective: call on every rank."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """Return torch's optimizer inside accelerate's wrapper, if there is one."""
    return getattr(optimizer, "optimizer", optimizer)


def copy_shared(state: dict[str, Tensor], live: Iterable[Any]) -> dict[str, Tensor]:
    """Return `state` with a copy of each entry that shares memory with a tensor of `live`.

    torch copies a state dict only if it comes from another device.
    """
    tensors = [value.to_local() if isinstance(value, DTensor) else value for value in live if torch.is_tensor(value)]
    addresses = {value.untyped_storage().data_ptr() for value in tensors}
    return {
        name: value.clone() if value.untyped_storage().data_ptr() in addresses else value
        for name, value in state.items()
    }


def whole_network_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the network's weights, unsharded, on the CPU. Collective: call on every rank.

    If the network is sharded, the result is empty on all ranks but 0.
    """
    state = get_model_state_dict(network, options=FULL_STATE)
    return copy_shared(state, [*network.parameters(), *network.buffers()])


def restore_network_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Load unsharded weights into a network of any topology. Collective: call on every rank, each with all of `state`.

    Raises:
        ValueError: a weight is missing. torch would keep the network's own weight.
        RuntimeError: `state` has a weight that the network does not have, or one of another shape.
    """
    if missing := sorted(get_model_state_dict(network).keys() - state.keys()):
        raise ValueError(f"{len(missing)} weights are missing ({missing[0]}, ...)")
    set_model_state_dict(network, dict(state), options=FULL_STATE)  # torch adds entries to its argument
