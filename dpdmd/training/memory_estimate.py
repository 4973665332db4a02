"""Estimate the device memory of one process: which phase needs most, whether that fits, and which flags lower it.

The total is that of the largest phase: encoding ahead, a fake-score update, a student update, or images (of an
evaluation or of the run itself).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from dpdmd.config import Config
from dpdmd.evaluation.in_loop_setup import EvalSetup
from dpdmd.models.registry import LAYOUTS
from dpdmd.training.memory_items import PHASES, MemoryItem, Topology, memory_items


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
        return sum(item.bytes or 0 for item in self.items if phase in item.phases)

    @property
    def peak(self) -> str:
        """The phase that needs most."""
        return max(PHASES, key=self.bytes_in_phase)

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
            mark = "*" if self.peak in item.phases else " "
            lines.append(f"  {mark} {size:>9}  {item.name}: {item.formula}")
        lines.append(f"    {self.total / 1e9:9.3f}  GB, the sum of * ({self.peak})")
        return "\n".join(lines)

    def advice(self) -> str:
        """Return the largest uses of the peak that a flag lowers, and those flags."""
        items = [item for item in self.items if self.peak in item.phases and item.flags and item.bytes]
        largest = sorted(items, key=lambda item: -(item.bytes or 0))[:4]
        flags = dict.fromkeys(flag for item in largest for flag in item.flags)
        sizes = ", ".join(f"{item.name} {item.bytes / 1e9:.1f} GB" for item in largest)
        return f"largest: {sizes}; these lower them: {', '.join(flags)}"

    def warnings(self) -> list[str]:
        if self.fits:
            return []
        return [f"the run may not fit its device: {self.summary()}; {self.advice()}"]


def estimate_memory(
    config: Config, evaluation: EvalSetup, topology: Topology, device: int | None = None
) -> MemoryEstimate:
    """Estimate the memory of one process at the image size that needs most.

    Args:
        device: bytes of the GPU; None without one.
    """
    sizes, estimates = list(config.data.image_sizes), []
    for size in sizes:
        data = replace(config.data, height=size.height, width=size.width, sizes=None)
        items = memory_items(replace(config, data=data), evaluation, topology)
        estimates.append(MemoryEstimate(tuple(items), device, str(size) if len(sizes) > 1 else ""))
    return max(estimates, key=lambda estimate: estimate.total)


def fewest_recomputed_blocks(config: Config, evaluation: EvalSetup, topology: Topology, device: int | None) -> str:
    """Return what `--recomputed_blocks auto` stands for: the fewest blocks with which the estimate fits, or "all".

    Args:
        device: bytes of the GPU; None without one.

    Raises:
        ValueError: the family does not count its activations.
    """
    layout, teacher = LAYOUTS[config.model.family], Path(config.model.teacher_id)
    if layout.call_memory is None:
        raise ValueError(
            f"--recomputed_blocks auto: the memory of --family {config.model.family} cannot be estimated; give a "
            "number, or all"
        )
    for count in range(layout.count_blocks(teacher) if device else 0):
        candidate = replace(config, optim=replace(config.optim, recomputed_blocks=str(count)))
        if estimate_memory(candidate, evaluation, topology, device).fits:
            return str(count)
    return "all"
