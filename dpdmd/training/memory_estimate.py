"""Estimate the device memory of one process of a run, and choose the number of recomputed blocks by the estimate.

The total is that of the largest phase: encoding ahead, a fake-score update, a student update, or images (of an
evaluation or of the run itself).
"""

from dataclasses import replace
from pathlib import Path

from dpdmd.config import Config
from dpdmd.evaluation.in_loop_setup import EvalSetup
from dpdmd.models.activation_memory import BF16, FP32
from dpdmd.models.memory_estimate import MemoryEstimate, host_bytes
from dpdmd.models.registry import LAYOUTS
from dpdmd.training.memory_items import Topology, checkpoint_item, memory_items
from dpdmd.utils.wording import counted


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


def machine_warnings(config: Config, local_processes: int) -> list[str]:
    """Compare this machine's memory with what a run on GPUs needs of it, beside that of the GPUs.

    Every process loads networks on the CPU before they are sharded or moved: the trained ones in fp32, with LoRA their
    base. Later, the first process copies what a checkpoint holds.

    Returns:
        A warning if the run may not fit; none on a system that does not report its memory.
    """
    layout, teacher, host = LAYOUTS[config.model.family], Path(config.model.teacher_id), host_bytes()
    bytes_of_number = (BF16 if config.optim.bf16 else FP32) if config.model.lora_rank else 2 * FP32
    loading = local_processes * layout.count_parameters(teacher) * bytes_of_number
    saving = checkpoint_item(config).bytes or 0
    if host is None or max(loading, saving) <= host:
        return []
    return [
        f"this machine has {host / 1e9:.0f} GB of memory: its {counted(local_processes, 'process', 'es')} load "
        f"{loading / 1e9:.0f} GB before the GPUs hold the networks, a checkpoint's copy takes {saving / 1e9:.0f} GB, "
        "and the system may kill the run; start fewer processes on each machine, or train a LoRA with --lora_rank"
    ]


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
