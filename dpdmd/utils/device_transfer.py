"""Copies between host and device, and time measurements, that do not wait for the device.

A copy from or to ordinary memory makes the host wait until the device has finished its queued work. The device is then
idle while the host prepares the next step. Copies from and to pinned memory are asynchronous. On a CPU, nothing is
copied.
"""

import time

import torch
from torch import Tensor


def to_device(value: Tensor, device: torch.device | str) -> Tensor:
    """Copy a host tensor to `device` without waiting for the copy."""
    if torch.device(device).type == "cuda":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)


class ToHost:
    """An asynchronous copy of a tensor to the host, started when the object is created."""

    def __init__(self, value: Tensor):
        self._value, self._copied = value, None
        if value.device.type == "cuda":
            self._value = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            self._value.copy_(value, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def read(self) -> list[float]:
        """Return the values. Waits until the device has done this copy, but not for later work."""
        if self._copied:
            self._copied.synchronize()
        return self._value.tolist()


class Stopwatch:
    """Measures the seconds from its creation to `stop`: on a GPU by CUDA events, else on the host."""

    def __init__(self, device: torch.device):
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        self._seconds = -time.perf_counter()
        if self._events:
            self._events[0].record()

    def stop(self) -> None:
        """End the measurement, without waiting for the device."""
        self._seconds += time.perf_counter()
        if self._events:
            self._events[1].record()

    def seconds(self) -> float:
        """Return the measured seconds. Waits until the device has reached `stop`."""
        if not self._events:
            return self._seconds
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1]) / 1000
