"""Checks of the machine before a run: the launch, the GPU, installed packages, and the memory of a run on a CPU."""

import os
from importlib.util import find_spec

import torch

from dpdmd.config import Config
from dpdmd.config.options import OptimConfig
from dpdmd.distributed.launch_env import check_launch, read_launch
from dpdmd.models.compilation import check_compiler
from dpdmd.training.memory_estimate import MemoryEstimate
from dpdmd.utils.library_settings import COMPILATION, Setting, check_settings

HOST_LIMIT = 10  # times this machine's memory: larger than any error of the estimate, and than any swap


def check_machine(config: Config) -> None:
    """Check the launch, the device and the packages that `config` needs.

    Raises:
        ValueError: one line that names the flag or variable and what to do.
    """
    check_launch()
    check_settings(_settings(config.optim))
    _check_device(config)
    if config.optim.compile:
        check_compiler(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    _check_packages(config)


def _settings(optim: OptimConfig) -> list[Setting]:
    """Return the libraries' settings that must agree with the flags."""
    bf16 = optim.bf16
    settings = [
        Setting("ACCELERATE_MIXED_PRECISION", ("no", *["bf16"] * bf16), f"--bf16 is {bf16}", "mixed_precision"),
        Setting(
            "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
            ("1", str(optim.grad_accum)),
            f"--grad_accum is {optim.grad_accum}",
            "gradient_accumulation_steps",
        ),
    ]
    return [*settings, *COMPILATION] if optim.compile else settings


def _check_device(config: Config) -> None:
    rank, count = read_launch().local_rank, torch.cuda.device_count()
    if torch.cuda.is_available() and rank >= count:
        raise ValueError(
            f"--num_processes of the launcher: process {rank + 1} of this machine has no device, there are {count}; "
            "start as many processes as there are devices"
        )
    if config.optim.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"--bf16: {torch.cuda.get_device_name()} has no bf16; leave the flag out")


def _check_packages(config: Config) -> None:
    tracker = config.run.report_to
    if tracker != "none" and find_spec(tracker) is None:
        raise ValueError(f"--report_to {tracker}: the package is not installed; pip install {tracker}, or give none")
    if config.optim.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise ValueError(
            "--optimizer adamw_8bit: the package bitsandbytes is not installed; pip install 'dpdmd[memory]', or give "
            "adamw"
        )


def local_device() -> torch.device:
    """Return the device of this process."""
    return torch.device("cuda", read_launch().local_rank) if torch.cuda.is_available() else torch.device("cpu")


def device_bytes() -> int | None:
    """Return the memory of this process's GPU; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(read_launch().local_rank).total_memory


def check_host_memory(memory: MemoryEstimate) -> list[str]:
    """Compare the estimate with this machine's memory, for a run without a GPU.

    Returns:
        A warning if the run may not fit; none on a system that does not report its memory.

    Raises:
        ValueError: the run cannot fit by far; the system would kill it without a message.
    """
    try:
        host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return []
    comparison = f"{memory.summary()}; this machine has {host / 1e9:.1f} GB of memory; {memory.advice()}"
    if memory.total > HOST_LIMIT * host:
        sides = "--sizes" if memory.size else "--height, --width"
        raise ValueError(f"--batch_size, {sides}: the run cannot fit: {comparison}")
    return [f"the run may not fit this machine: {comparison}"] if memory.total > host else []
