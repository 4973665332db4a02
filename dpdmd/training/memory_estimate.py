"""Estimate the device memory of one process of a run, and choose the number of recomputed blocks by the estimate.

The total is that of the largest phase: encoding ahead, a fake-score update, a student update, or images (of an
evaluation or of the run itself).
"""

from dataclasses import replace
from pathlib import Path

from dpdmd.config import Config
from dpdmd.evaluation.in_loop_setup import EvalSetup
from dpdmd.models.memory_estimate import MemoryEstimate
from dpdmd.models.registry import LAYOUTS
from dpdmd.training.memory_items import Topology, memory_items


def estimate_memory(
    config: Config, evaluation: EvalSetup, topology: Topology, device: int | None = None, *, on_gpu: bool = True
) -> MemoryEstimate:
    """Estimate the memory of one process at the image size that needs most.

    Args:
        device: bytes of the GPU; None without one.
        on_gpu: whether the process runs on a GPU, whose context counts.
    """
    sizes, estimates = list(config.data.image_sizes), []
    for size in sizes:
        data = replace(config.data, height=size.height, width=size.width, sizes=None)
        items = memory_items(replace(config, data=data), evaluation, topology, on_gpu=on_gpu)
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
