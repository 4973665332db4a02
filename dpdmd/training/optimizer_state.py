"""Whole optimizer states, saved from and restored into any topology."""

from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from dpdmd.distributed.sharding import FULL_STATE, copy_shared, unwrapped
from dpdmd.training.optimizers import is_quantised, quantised_state, restore_quantised_state


def whole_optimizer_state(network: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """A copy of the optimizer's state as "parameter|entry" -> tensor, unsharded, on the CPU of rank 0. Collective.

    Empty on the other ranks, and for an optimizer that has not stepped yet: asking torch for its state would make
    it step.
    """
    raw = unwrapped(optimizer)
    if not raw.state:
        return {}
    if is_quantised(raw):
        return quantised_state(extract_model_from_parallel(network), raw)
    state = get_optimizer_state_dict(network, raw, options=FULL_STATE).get("state", {})
    flat = {f"{name}|{key}": value for name, entries in state.items() for key, value in entries.items()}
    return copy_shared(flat, [value for entries in raw.state.values() for value in entries.values()])


def restore_optimizer_state(network: nn.Module, optimizer: Any, saved: dict[str, Tensor]) -> None:
    """Inverse of `whole_optimizer_state`, into an optimizer of any topology. Collective."""
    if not saved:
        return
    raw = unwrapped(optimizer)
    if is_quantised(raw):
        restore_quantised_state(extract_model_from_parallel(network), raw, saved)
        return
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in saved.items():
        parameter, key = name.rsplit("|", 1)
        state.setdefault(parameter, {})[key] = value
    options = [{key: value for key, value in group.items() if key != "params"} for group in raw.param_groups]
    groups = [{**group, "params": list(state)} for group in options]
    set_optimizer_state_dict(network, raw, {"state": state, "param_groups": groups}, options=FULL_STATE)
