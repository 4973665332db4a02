"""Wrapping, sharding and whole state dicts of networks; gradient norms over shards."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

FULL_STATE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def prepare(accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
    """Place and wrap one trained network with its optimizer; FSDP2 takes one pair a call. Collective."""
    return accelerator.prepare(network, optimizer)


def shard_frozen(network: nn.Module, block_classes: Sequence[str]) -> None:
    """Shard a network that is not trained, block by block, in place. Collective.

    Not `prepare`d, so that it lands in no checkpoint and needs no optimizer.
    """
    for module in network.modules():
        if type(module).__name__ in block_classes:
            fully_shard(module)
    fully_shard(network)


@contextmanager
def synchronise_when(accelerator: Accelerator, networks: Sequence[nn.Module], condition: bool) -> Iterator[None]:
    """Gradients are averaged over processes in this backward pass only if `condition`."""
    with ExitStack() as stack:
        if not condition:
            for network in networks:
                stack.enter_context(accelerator.no_sync(network))
        yield


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Global 2-norm of all gradients, over all shards, a plain scalar tensor. Collective under sharding."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip_gradients(parameters: list[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Scale all gradients by max_norm / norm where the global `norm` exceeds `max_norm`."""
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """torch's own optimizer inside accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def copy_shared(state: dict[str, Tensor], live: Iterable[Any]) -> dict[str, Tensor]:
    """`state` with a copy of each entry that shares memory with one of `live`: torch copies only from a device."""
    tensors = [value.to_local() if isinstance(value, DTensor) else value for value in live if torch.is_tensor(value)]
    places = {value.untyped_storage().data_ptr() for value in tensors}
    return {
        name: value.clone() if value.untyped_storage().data_ptr() in places else value for name, value in state.items()
    }


def whole_network_state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's weights on the CPU, unsharded; under sharding empty on all ranks but 0. Collective."""
    state = get_model_state_dict(network, options=FULL_STATE)
    return copy_shared(state, [*network.parameters(), *network.buffers()])


def restore_network_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Inverse of `whole_network_state`, into a network of any topology; strict. Collective."""
    set_model_state_dict(network, state, options=FULL_STATE)
