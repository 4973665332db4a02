"""A step that the device may still be working on, and its figures on their way to the host.

Reading a loss makes the host wait for the device, and then the device for the host. So a step ends with its figures
on their way, and they are read when the next one has begun; whether they are finite, the device has decided itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dpdmd.training.build import Trained
from dpdmd.utils.device_transfer import Stopwatch, ToHost


class Figures:
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
class StepUnderWay:
    """One update that was handed to the device.

    Attributes:
        step: the update, 0 for the first.
        trained: the networks whose it is, by name; the first gives the turn its name.
        figures: losses and gradient norm.
        latents: what the last micro-batch's loss was made of, each [B, C, H, W].
        samples: place of each of them in the global batch.
        learning_rate: of the first.
        watch: stopped at the end of the update.
    """

    step: int
    trained: dict[str, Trained]
    figures: Figures
    latents: dict[str, Tensor]
    samples: Sequence[int]
    learning_rate: float
    watch: Stopwatch
