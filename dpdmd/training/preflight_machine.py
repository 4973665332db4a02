"""Checks of the machine before a run: the launch, the GPU, and installed packages."""

from importlib.util import find_spec

import torch

from dpdmd.config import Config
from dpdmd.config.options import OptimConfig
from dpdmd.config.precisions import FP8, UNQUANTIZED, check_installed
from dpdmd.distributed.launch_env import check_launch, is_on, read_launch, uses_gpu
from dpdmd.distributed.topology import local_device
from dpdmd.models.compilation import check_compiler
from dpdmd.utils.library_settings import COMPILATION, Setting, check_settings

FP8_CAPABILITY = (8, 9)  # of GPUs for which Triton compiles numbers in fp8


def check_machine(config: Config) -> None:
    """Check the launch, the device and the packages that `config` needs.

    Raises:
        ValueError: one line that names the flag or variable and what to do.
    """
    check_launch()
    check_settings(_settings(config.optim))
    _check_device(config)
    _check_quantization(config)
    if config.optim.compile:
        check_compiler(local_device())
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
    if uses_gpu() and rank >= count:
        raise ValueError(
            f"--num_processes of the launcher: process {rank + 1} of this machine has no device, there are {count}; "
            "start as many processes as there are devices"
        )
    if config.optim.bf16 and uses_gpu() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(f"--bf16: {torch.cuda.get_device_name()} has no bf16; leave the flag out")


def _check_quantization(config: Config) -> None:
    """Check that this launch and device can hold and compute with quantised weights."""
    model = config.model
    if model.base_precision != UNQUANTIZED and is_on("ACCELERATE_USE_FSDP"):
        raise ValueError(
            f"--base_precision {model.base_precision}: not under FSDP, which divides parameters and not quantised "
            "weights; use scripts/accelerate_ddp.yaml, or leave the flag out"
        )
    compiles_fp8 = model.base_precision == FP8 and config.optim.compile and uses_gpu()
    if compiles_fp8 and torch.cuda.get_device_capability(read_launch().local_rank) < FP8_CAPABILITY:
        raise ValueError(
            f"--base_precision fp8: compiled kernels on {torch.cuda.get_device_name()} have no fp8; give "
            "--base_precision int8, or --no-compile"
        )


def _check_packages(config: Config) -> None:
    tracker = config.run.report_to
    if tracker != "none" and find_spec(tracker) is None:
        raise ValueError(f"--report_to {tracker}: the package is not installed; pip install {tracker}, or give none")
    if config.optim.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
        raise ValueError(
            "--optimizer adamw_8bit: the package bitsandbytes is not installed; pip install -e '.[memory]', or give "
            "adamw"
        )
    for flag in ("base_precision", "text_encoder_precision"):
        check_installed(flag, getattr(config.model, flag))
