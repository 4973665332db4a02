"""The estimate of a process's memory: counted items in phases. The largest phase is the total.

`dpdmd.training.memory_items` lists the items of a run, `dpdmd.sampling.memory_estimate` those of sampling
and of an export.
"""

import os
from dataclasses import dataclass

import torch

from dpdmd.distributed.launch_env import read_launch, uses_gpu

CONTEXT = 600_000_000  # CUDA's own context and libraries on a data-centre card: an assumption, the only one
LIBRARIES = 900_000_000  # Python and its libraries in a machine's memory: measured (benchmarks/results)
HOST_LIMIT = 10  # times this machine's memory: larger than any error of the estimate, and than any swap


@dataclass(frozen=True)
class MemoryItem:
    """One use of memory.

    Attributes:
        bytes: None if the family does not count them.
        formula: how the bytes are counted.
        phases: the phases in which the memory is in use; empty for all.
        flags: the flags that lower it.
    """

    name: str
    bytes: int | None
    formula: str
    phases: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    def in_use(self, phase: str) -> bool:
        return not self.phases or phase in self.phases


def libraries(on_gpu: bool) -> MemoryItem:
    """Return the memory that any process of this package takes, on a GPU or without one."""
    if on_gpu:
        return MemoryItem("CUDA", CONTEXT, "context and libraries, assumed")
    return MemoryItem("libraries", LIBRARIES, "Python and its libraries")


@dataclass(frozen=True)
class MemoryEstimate:
    """All uses of memory, and the bytes that the device has (None: no GPU).

    Attributes:
        size: the image size that needs most, if the run has several; else "".
    """

    items: tuple[MemoryItem, ...]
    device: int | None
    size: str = ""

    def bytes_in_phase(self, phase: str) -> int:
        return sum(item.bytes or 0 for item in self.items if item.in_use(phase))

    @property
    def peak(self) -> str:
        """The phase that needs most."""
        return max(dict.fromkeys(phase for item in self.items for phase in item.phases), key=self.bytes_in_phase)

    @property
    def total(self) -> int:
        return self.bytes_in_phase(self.peak)

    @property
    def fits(self) -> bool:
        return self.device is None or self.total <= self.device

    def summary(self) -> str:
        """Return total, phase and device in one line."""
        least = "at least " if any(item.bytes is None for item in self.items) else ""
        device = f"the device has {self.device / 1e9:.1f} GB" if self.device else "no GPU to compare with"
        size = f" at {self.size}" if self.size else ""
        return f"estimated {least}{self.total / 1e9:.1f} GB, most in: {self.peak}{size}; {device}"

    def table(self) -> str:
        """Return a line for each use; those that count toward the total are marked."""
        lines = [f"device memory of a process: {self.summary()}"]
        for item in self.items:
            size = "not known" if item.bytes is None else f"{item.bytes / 1e9:9.3f}"
            mark = "*" if item.in_use(self.peak) else " "
            lines.append(f"  {mark} {size:>9}  {item.name}: {item.formula}")
        lines.append(f"    {self.total / 1e9:9.3f}  GB, the sum of * ({self.peak})")
        return "\n".join(lines)

    def advice(self) -> str:
        """Return the largest uses of the peak that a flag lowers, and those flags."""
        items = [item for item in self.items if item.in_use(self.peak) and item.flags and item.bytes]
        if not items:
            return "no flag lowers it"
        largest = sorted(items, key=lambda item: -(item.bytes or 0))[:4]
        flags = dict.fromkeys(flag for item in largest for flag in item.flags)
        sizes = ", ".join(f"{item.name} {item.bytes / 1e9:.1f} GB" for item in largest)
        return f"largest: {sizes}; these lower them: {', '.join(flags)}"

    def warnings(self) -> list[str]:
        if self.fits:
            return []
        return [f"the run may not fit its device: {self.summary()}; {self.advice()}"]

    def host_warnings(self, flags: str) -> list[str]:
        """Compare the estimate with this machine's memory, for a process without a GPU.

        Args:
            flags: the flags of the sizes, for the error.

        Returns:
            A warning if the process may not fit; none on a system that does not report its memory.

        Raises:
            ValueError: the process cannot fit by far; the system would kill it without a message.
        """
        host = host_bytes()
        if host is None:
            return []
        comparison = f"{self.summary()}; this machine has {host / 1e9:.1f} GB of memory; {self.advice()}"
        if self.total > HOST_LIMIT * host:
            raise ValueError(f"{flags}: the run cannot fit: {comparison}")
        return [f"the run may not fit this machine: {comparison}"] if self.total > host else []


def host_bytes() -> int | None:
    """Return this machine's memory; None on a system that does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def device_bytes() -> int | None:
    """Return the memory of this process's GPU; None on a CPU."""
    if not uses_gpu():
        return None
    return torch.cuda.get_device_properties(read_launch().local_rank).total_memory
