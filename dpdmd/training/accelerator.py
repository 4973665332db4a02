"""The only place that configures accelerate."""

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed

from dpdmd.config import Config
from dpdmd.distributed.launch_env import read_launch
from dpdmd.methods.registry import DISCRIMINATOR, trained_networks
from dpdmd.utils.text_files import shorten_error


def make_accelerator(config: Config, tracker_folder: Path) -> Accelerator:
    """The only place where accelerate is configured; accumulation and autocast are ours, topology is accelerate's.

    Raises:
        ValueError: the processes do not see each other, or are spread in a way that this configuration does not take.
    """
    tracker = None if config.run.report_to == "none" else config.run.report_to
    try:
        accelerator = Accelerator(
            mixed_precision="no", gradient_accumulation_steps=1, log_with=tracker, project_dir=tracker_folder
        )
    except (AssertionError, ImportError, RuntimeError) as error:  # a port that is taken, a backend that is not there
        raise ValueError(
            f"the launch: accelerate does not start ({type(error).__name__}: {shorten_error(error)})"
        ) from None
    launched = read_launch().processes
    if launched != accelerator.num_processes:
        raise ValueError(
            f"{launched} processes were launched but accelerate joined {accelerator.num_processes}: on a CPU set "
            "ACCELERATE_USE_CPU=true and launch with torchrun or accelerate launch --multi_gpu"
        )
    if accelerator.distributed_type not in (
        DistributedType.NO,
        DistributedType.MULTI_GPU,
        DistributedType.MULTI_CPU,
        DistributedType.FSDP,
    ):
        raise ValueError(
            f"accelerate's distributed_type {accelerator.distributed_type.value} is not supported: "
            "use NO, MULTI_GPU or FSDP (version 2)"
        )
    if accelerator.distributed_type is DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError("FSDP version 1 is not supported: set fsdp_version: 2 in accelerate's file")
    if config.optim.shard_teacher and accelerator.distributed_type is not DistributedType.FSDP:
        raise ValueError(
            f"--shard_teacher: the launch is {accelerator.distributed_type.value}, not FSDP; use "
            "scripts/accelerate_sd35_fsdp.yaml, or leave the flag out"
        )
    if config.model.lora_rank and accelerator.distributed_type is DistributedType.FSDP:
        raise ValueError(
            "--lora_rank: the launch is FSDP, which shards whole networks; adapters are small, use "
            "scripts/accelerate_ddp.yaml or scripts/accelerate_single_gpu.yaml"
        )
    if config.optim.optimizer == "adamw_8bit" and accelerator.distributed_type is DistributedType.FSDP:
        raise ValueError("--optimizer adamw_8bit: its state cannot be sharded; launch without FSDP, or give adamw")
    if DISCRIMINATOR in trained_networks(config.method) and accelerator.distributed_type is DistributedType.FSDP:
        raise ValueError(
            "--method dmd_gan: the launch is FSDP, whose sharded blocks give no features and no gradient to a sample "
            "alone; use scripts/accelerate_ddp.yaml or scripts/accelerate_single_gpu.yaml"
        )
    set_seed(config.run.seed)  # no draw of ours reads the global state; this covers the libraries'
    return accelerator
