"""AdamW, with moments in fp32 or, by bitsandbytes, in 8 bits."""

from collections.abc import Iterable

import torch
from torch import nn

from dpdmd.config.options import OptimConfig


def make_optimizer(
    parameters: Iterable[nn.Parameter], optim: OptimConfig, lr: float, device: torch.device
) -> torch.optim.Optimizer:
    """Build the optimizer that `--optimizer` names.

    8 bits: blocks of 256 numbers with one fp32 scale (Dettmers et al., arXiv 2110.02861). Tensors of fewer than 4,096
    numbers stay in fp32.
    """
    settings = {"lr": lr, "betas": (optim.adam_beta1, optim.adam_beta2), "weight_decay": optim.weight_decay}
    if optim.optimizer == "adamw":
        # The fused kernel skips a non-finite update by itself, so the host does not wait for the metrics.
        return torch.optim.AdamW(parameters, fused=device.type == "cuda" or None, **settings)
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, **settings)


def bytes_of_moments(optim: OptimConfig) -> float:
    """Return the bytes of both moments of one trained number: 4 each, or 1 each with an fp32 scale for 256 of them."""
    return 2 * (1 + 4 / 256) if optim.optimizer == "adamw_8bit" else 2 * 4
