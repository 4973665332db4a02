"""One update of one network: its metrics on their way to the host, and the optimizer step that a nan withholds.

Reading a loss makes the host wait for the device, and then the device for the host. So a step ends while its metrics
are being copied, and they are read after the next step has begun. Whether they are finite is decided on the device.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dpdmd.distributed import sharding
from dpdmd.utils.device_transfer import Stopwatch, ToHost


@dataclass
class TrainedNetwork:
    """One trained network.

    Attributes:
        network: as the trainer calls it, wrapped or not.
        learning_rate: the full one, before any schedule.
        updates: how often it was updated.
    """

    network: nn.Module
    optimizer: Any
    parameters: list[nn.Parameter]
    learning_rate: float
    updates: int = 0


class StepMetrics:
    """Scalars of one step by name, the same on every rank.

    Attributes:
        nonfinite: 1 where any is nan or infinite, else 0; fp32 scalar on the device.
    """

    def __init__(self, names: Sequence[str], values: Tensor):
        """`values`: [len(names)], on the device."""
        self.nonfinite = 1 - values.isfinite().all().float()
        self._names, self._values = names, ToHost(values)

    def read(self) -> dict[str, float]:
        """All of them on the host; waits for the device to have computed them."""
        return dict(zip(self._names, self._values.read(), strict=True))

    def are_finite(self) -> bool:
        """Whether all are; waits as `read` does."""
        return all(math.isfinite(value) for value in self._values.read())


@dataclass(frozen=True)
class PendingStep:
    """One update that was handed to the device.

    Attributes:
        step: the update, 0 for the first.
        trained: the networks whose it is, by name; the first gives the turn its name.
        metrics: losses and gradient norm.
        latents: what the last micro-batch's loss was made of, each [B, C, H, W].
        samples: place of each of them in the global batch.
        learning_rate: of the first.
        watch: stopped at the end of the update.
    """

    step: int
    trained: dict[str, TrainedNetwork]
    metrics: StepMetrics
    latents: dict[str, Tensor]
    samples: Sequence[int]
    learning_rate: float
    watch: Stopwatch


def skips_on_device(optimizer: Any) -> bool:
    """Whether the optimizer's kernel withholds an update by itself: torch's fused ones, made so for mixed precision."""
    return all(group.get("fused") for group in sharding.unwrapped(optimizer).param_groups)


def apply_update(
    trained: TrainedNetwork, metrics: StepMetrics, norm: Tensor, learning_rate: float, max_norm: float
) -> None:
    """Clip gradients of the global `norm` to `max_norm` and step; nothing moves if one of `metrics` is not finite.

    Where the optimizer can skip by itself, the host does not wait to know: neither weights nor moments nor their
    count change then. Elsewhere the host reads the metrics first.
    """
    optimizer = sharding.unwrapped(trained.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    if skips_on_device(optimizer):
        optimizer.grad_scale, optimizer.found_inf = None, metrics.nonfinite
    elif not metrics.are_finite():
        return
    sharding.clip_gradients(trained.parameters, max_norm, norm)
    trained.optimizer.step()
