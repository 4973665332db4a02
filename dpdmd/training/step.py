"""One update of one network: metrics that are copied to the host, and an optimizer step that skips non-finite values.

If the host reads a loss, it waits for the device, and then the device waits for the host. So a step ends while its
metrics are being copied, and the host reads them after the next step has begun. Whether they are finite is decided on
the device.
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
    """One trained network with its optimizer.

    Attributes:
        network: as the trainer calls it, wrapped or not.
        learning_rate: the full learning rate, before any schedule.
        updates: how many updates it has had.
    """

    network: nn.Module
    optimizer: Any
    parameters: list[nn.Parameter]
    learning_rate: float
    updates: int = 0


class StepMetrics:
    """Named scalars of one step, the same on every rank.

    Attributes:
        nonfinite: 1 if any scalar is nan or infinite, else 0; fp32 scalar on the device.
    """

    def __init__(self, names: Sequence[str], values: Tensor):
        """`values`: [len(names)], on the device."""
        self.nonfinite = 1 - values.isfinite().all().float()
        self._names, self._values = names, ToHost(values)

    def read(self) -> dict[str, float]:
        """Return all scalars on the host; waits until the device has computed them."""
        return dict(zip(self._names, self._values.read(), strict=True))

    def are_finite(self) -> bool:
        """Return whether all scalars are finite; waits like `read`."""
        return all(math.isfinite(value) for value in self._values.read())


@dataclass(frozen=True)
class PendingStep:
    """One update that the device works on.

    Attributes:
        step: the update, 0 for the first.
        trained: the networks that it updates, by name; the update is named after the first.
        metrics: losses and gradient norms.
        latents: the latents behind the last micro-batch's loss, by name, each [B, C, H, W].
        samples: place of each latent in the global batch, [B].
        learning_rate: of the first network.
        watch: stopped at the end of the update.
    """

    step: int
    trained: dict[str, TrainedNetwork]
    metrics: StepMetrics
    latents: dict[str, Tensor]
    samples: Sequence[int]
    learning_rate: float
    watch: Stopwatch

    @property
    def update(self) -> str:
        """The name of the update: "student" or "fake"."""
        return next(iter(self.trained))


def skips_on_device(optimizer: Any) -> bool:
    """Return whether the optimizer's kernel skips a non-finite update by itself, as torch's fused kernels do."""
    return all(group.get("fused") for group in sharding.unwrapped(optimizer).param_groups)


def apply_update(
    trained: TrainedNetwork, metrics: StepMetrics, norm: Tensor, learning_rate: float, max_norm: float
) -> None:
    """Clip gradients of the global `norm` to `max_norm` and step, unless one of `metrics` is not finite.

    An optimizer that skips on the device then changes neither weights nor moments nor their count, and the host does
    not wait. For other optimizers the host reads the metrics first.
    """
    optimizer = sharding.unwrapped(trained.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    if skips_on_device(optimizer):
        optimizer.grad_scale, optimizer.found_inf = None, metrics.nonfinite
    elif not metrics.are_finite():
        return
    nn.utils.clip_grads_with_norm_(trained.parameters, max_norm, norm)
    trained.optimizer.step()
