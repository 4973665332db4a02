"""AdamW, with moments in fp32 or, by bitsandbytes, in 8 bits; and the 8-bit state as plain tensors."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from dpdmd.config.options import OptimConfig

_COUNT = "step"  # the one entry that bitsandbytes keeps as a number


def make_optimizer(
    parameters: Iterable[nn.Parameter], optim: OptimConfig, lr: float, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer that `--optimizer` names.

    8 bits: blocks of 256 numbers with an fp32 scale each (Dettmers et al., arXiv 2110.02861); tensors below 4,096
    numbers keep fp32.
    """
    settings = {"lr": lr, "betas": (optim.adam_beta1, optim.adam_beta2), "weight_decay": optim.weight_decay}
    if optim.optimizer == "adamw":
        # The fused kernel skips an update by itself, so that the host need not wait to know whether there is one.
        return torch.optim.AdamW(parameters, fused=device.type == "cuda" or None, **settings)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, **settings)


def bytes_of_moments(optim: OptimConfig) -> float:
    """Bytes that both moments of one trained number take: two fp32, or two of one byte with an fp32 scale each 256."""
    return 2 * (1 + 4 / 256) if optim.optimizer == "adamw_8bit" else 2 * 4


def is_quantised(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its state is bitsandbytes', which torch's own way to whole state dicts does not know."""
    return hasattr(optimizer, "non_castable_tensor_keys")


def quantised_state(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State as "parameter|entry" -> tensor on the CPU, none sharing memory with another: the code tables are one."""
    return {
        f"{name}|{entry}": torch.as_tensor(value).detach().cpu().clone()
        for name, parameter in network.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


def restore_quantised_state(network: nn.Module, optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """Inverse of `quantised_state`.

    Raises:
        ValueError: the saved state is of other parameters.
    """
    state: dict[str, dict[str, Any]] = {}
    for key, value in saved.items():
        name, entry = key.rsplit("|", 1)
        state.setdefault(name, {})[entry] = value
    parameters = dict(network.named_parameters())
    if strange := state.keys() - parameters.keys():
        raise ValueError(f"the saved optimizer state is of another network's parameters ({min(strange)}, ...)")
    for name, entries in state.items():
        device = parameters[name].device
        optimizer.state[parameters[name]] = {
            entry: int(value) if entry == _COUNT else value.to(device, copy=True) for entry, value in entries.items()
        }
