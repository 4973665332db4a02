"""A plan of one process's device memory: the rows, which phase takes most, and whether that fits.

The largest phase counts: encoding ahead, a fake turn, a student turn, or images (an evaluation's or the run's own).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from dpdmd.config import Config
from dpdmd.evaluation.in_loop_setup import EvalSetup
from dpdmd.models.registry import LAYOUTS
from dpdmd.training.memory_items import PHASES, MemoryItem, Topology, memory_items


@dataclass(frozen=True)
class MemoryEstimate:
    """All rows, and the bytes that the device has (None: there is none)."""

    items: tuple[MemoryItem, ...]
    device: int | None

    def bytes_in_phase(self, phase: str) -> int:
        return sum(row.bytes or 0 for row in self.items if phase in row.phases)

    @property
    def peak(self) -> str:
        """The phase that takes most."""
        return max(PHASES, key=self.bytes_in_phase)

    @property
    def total(self) -> int:
        return self.bytes_in_phase(self.peak)

    @property
    def fits(self) -> bool:
        return self.device is None or self.total <= self.device

    def summary(self) -> str:
        """Total, phase and device, in a line."""
        least = "at least " if any(row.bytes is None for row in self.items) else ""
        has = f"; the device has {self.device / 1e9:.1f} GB" if self.device else "; no GPU to compare with"
        return f"{least}{self.total / 1e9:.1f} GB by plan, most in: {self.peak}{has}"

    def table(self) -> str:
        """All rows; those that count toward the total are marked."""
        lines = [f"device memory of a process: {self.summary()}"]
        for row in self.items:
            size = "not known" if row.bytes is None else f"{row.bytes / 1e9:9.3f}"
            mark = "*" if self.peak in row.phases else " "
            lines.append(f"  {mark} {size:>9}  {row.name}: {row.formula}")
        lines.append(f"    {self.total / 1e9:9.3f}  GB, the sum of * ({self.peak})")
        return "\n".join(lines)

    def advice(self) -> str:
        """The largest rows of the peak that a flag lowers, and those flags."""
        rows = [row for row in self.items if self.peak in row.phases and row.flags and row.bytes]
        largest = sorted(rows, key=lambda row: -(row.bytes or 0))[:4]
        flags = dict.fromkeys(flag for row in largest for flag in row.flags)
        sizes = ", ".join(f"{row.name} {row.bytes / 1e9:.1f} GB" for row in largest)
        return f"largest: {sizes}; these lower them: {', '.join(flags)}"

    def warnings(self) -> list[str]:
        if self.fits:
            return []
        return [f"the run may not fit its device: {self.summary()}; {self.advice()}"]


def estimate_memory(
    config: Config, evaluation: EvalSetup, topology: Topology, device: int | None = None
) -> MemoryEstimate:
    """The plan of one process; `device` is what its GPU has."""
    return MemoryEstimate(tuple(memory_items(config, evaluation, topology)), device)


def fewest_recomputed_blocks(config: Config, evaluation: EvalSetup, topology: Topology, device: int | None) -> str:
    """`--recomputed_blocks auto` for a device of so many bytes: the fewest with which the plan fits it, or all.

    Raises:
        ValueError: the family's activations are not counted.
    """
    layout, teacher = LAYOUTS[config.model.family], Path(config.model.teacher_id)
    if layout.call_memory is None:
        raise ValueError(
            f"--recomputed_blocks auto: no plan counts what --family {config.model.family} keeps; give a number, or all"
        )
    for count in range(layout.count_blocks(teacher) if device else 0):
        tried = replace(config, optim=replace(config.optim, recomputed_blocks=str(count)))
        if estimate_memory(tried, evaluation, topology, device).fits:
            return str(count)
    return "all"
