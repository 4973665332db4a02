"""Save and restore whole optimizer states, in any topology."""

from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from dpdmd.distributed.launch_env import read_launch
from dpdmd.distributed.sharding import FULL_STATE, copy_shared, unwrapped

_COUNT = "step"  # the only entry that bitsandbytes keeps as a number


def whole_optimizer_state(network: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Copy the optimizer's state as "parameter|entry" -> tensor, unsharded, to the CPU of rank 0. Collective.

    The result is empty on the other ranks, and for an optimizer that has not stepped: to return its state, torch
    would make it step.
    """
    raw = unwrapped(optimizer)
    if not raw.state:
        return {}
    if _is_quantised(raw):  # whole on every rank
        return _quantised_state(extract_model_from_parallel(network), raw) if read_launch().rank == 0 else {}
    state = get_optimizer_state_dict(network, raw, options=FULL_STATE).get("state", {})
    flat = {f"{name}|{key}": value for name, entries in state.items() for key, value in entries.items()}
    return copy_shared(flat, [value for entries in raw.state.values() for value in entries.values()])


def restore_optimizer_state(network: nn.Module, optimizer: Any, saved: dict[str, Tensor]) -> None:
    """Restore what `whole_optimizer_state` returned, into an optimizer of any topology. Collective."""
    if not saved:
        return
    raw = unwrapped(optimizer)
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in saved.items():
        parameter, key = name.rsplit("|", 1)
        state.setdefault(parameter, {})[key] = value
    if _is_quantised(raw):
        _restore_quantised_state(extract_model_from_parallel(network), raw, state)
        return
    options = [{key: value for key, value in group.items() if key != "params"} for group in raw.param_groups]
    groups = [{**group, "params": list(state)} for group in options]
    set_optimizer_state_dict(network, raw, {"state": state, "param_groups": groups}, options=FULL_STATE)


def _is_quantised(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the state is bitsandbytes', which torch's functions for whole state dicts do not support."""
    return hasattr(optimizer, "non_castable_tensor_keys")


def _quantised_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copy the state as "parameter|entry" -> tensor to the CPU; in bitsandbytes all parameters share one code table."""
    return {
        f"{name}|{entry}": torch.as_tensor(value).detach().cpu().clone()
        for name, parameter in network.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def _restore_quantised_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, dict[str, Tensor]]
) -> None:
    """Restore the state of each parameter, by its name.

    Raises:
        ValueError: the state belongs to other parameters.
    """
    parameters = dict(network.named_parameters())
    if unknown := state.keys() - parameters.keys():
        raise ValueError(f"the saved optimizer state is of another network's parameters ({min(unknown)}, ...)")
    for name, entries in state.items():
        device = parameters[name].device
        optimizer.state[parameters[name]] = {
            entry: int(value) if entry == _COUNT else value.to(device, copy=True) for entry, value in entries.items()
        }
