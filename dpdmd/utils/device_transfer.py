"""Between host and device without waiting: draws go there from pinned memory, figures come back by themselves.

A copy from or to ordinary memory makes the host wait for all that the device still has to do; the device then waits
in turn while the host prepares the next step. On a CPU there is nothing to wait for, and both are the tensor itself.
"""

import time

import torch
from torch import Tensor


def to_device(value: Tensor, device: torch.device | str) -> Tensor:
    """`value`, which lies on the host, on `device`; the host goes on while it is copied."""
    if torch.device(device).type == "cuda":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


class ToHost:
    """A tensor on its way from the device to the host."""

    def __init__(self, value: Tensor):
        self._value, self._arrived = value, None
        if value.device.type == "cuda":
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """Its values; waits until the device has come to this copy, and for nothing after it."""
        if self._arrived:
            self._arrived.synchronize()
        return self._value.tolist()


class Stopwatch:
    """Seconds from its making to `stop`, as the device counts them where it works by itself."""

    def __init__(self, device: torch.device):
        self._marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self._seconds = -time.perf_counter()
        if self._marks:
            self._marks[0].record()

    def stop(self) -> None:
        """The end of what is measured; does not wait for the device to reach it."""
        self._seconds += time.perf_counter()
        if self._marks:
            self._marks[1].record()

    def seconds(self) -> float:
        """What was measured; waits until the device has come to the end of it."""
        if not self._marks:
            return self._seconds
        self._marks[1].synchronize()
        return self._marks[0].elapsed_time(self._marks[1]) / 1000
