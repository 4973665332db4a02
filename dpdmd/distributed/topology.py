"""How many processes a program really runs on, and on which device: checked, described and recorded."""

import platform
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from dpdmd.distributed.launch_env import read_launch, uses_gpu
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.wording import counted

if TYPE_CHECKING:
    from accelerate import Accelerator

# All ranks load the same buffers, and no step changes them: each call would send SD3.5's position table, .9 GB.
DDP_OPTIONS = {"broadcast_buffers": False}
LONGEST_FILE_WORK = timedelta(hours=2)  # of rank 0, while the others wait


def start_accelerator() -> "Accelerator":
    """Start accelerate, which only joins the processes: precision and accumulation are ours.

    Its ranks wait as long as rank 0 may work on files. NCCL's own limit is ten minutes, which a checkpoint of 200 GB
    exceeds.

    Raises:
        ValueError: the processes do not find each other.
    """
    from accelerate import Accelerator  # takes seconds, and other programs only describe processes
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

    try:
        accelerator = Accelerator(
            mixed_precision="no",
            # Not gradient_accumulation_steps=1, which ACCELERATE_GRADIENT_ACCUMULATION_STEPS would replace.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=LONGEST_FILE_WORK),
                DistributedDataParallelKwargs(**DDP_OPTIONS),
            ],
        )
    except (AssertionError, ImportError, RuntimeError) as error:  # a port in use, a missing backend
        raise ValueError(
            f"the launch: accelerate does not start ({type(error).__name__}: {shorten_error(error)})"
        ) from None
    check_joined(accelerator.num_processes)
    return accelerator


def local_device() -> torch.device:
    """Return the device of this process: the GPU of its local rank, or the CPU if `uses_gpu` says so."""
    return torch.device("cuda", read_launch().local_rank) if uses_gpu() else torch.device("cpu")


def check_joined(joined: int) -> None:
    """Check that accelerate joined all launched processes into one group; `joined` is the size of the group.

    Raises:
        ValueError: it did not, so that each process would do all the work and write the same files.
    """
    launched = read_launch().processes
    if launched != joined:
        raise ValueError(
            f"{launched} processes were launched but accelerate joined {joined}: on a CPU set "
            "ACCELERATE_USE_CPU=true and launch with torchrun or accelerate launch --multi_gpu"
        )


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or "cpu" and the machine's architecture."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}"


def describe(processes: int, device: torch.device) -> str:
    """Return a phrase such as "2 processes, each on cpu, x86_64"."""
    return f"{counted(processes, 'process', 'es')}{', each' * (processes > 1)} on {device_name(device)}"
