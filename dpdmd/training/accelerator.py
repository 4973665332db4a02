"""Configure accelerate for a training. Topology is accelerate's; accumulation and autocast are ours."""

from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed

from dpdmd.config import Config
from dpdmd.config.method_table import METHODS
from dpdmd.distributed.topology import start_accelerator

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.FSDP)


def make_accelerator(config: Config) -> Accelerator:
    """Start accelerate, and check its topology against `config`.

    Raises:
        ValueError: the processes do not find each other, or `config` does not work with the topology.
    """
    accelerator = start_accelerator()
    _check_topology(accelerator, config)
    set_seed(config.run.seed)  # no draw of ours reads the global state; libraries do
    return accelerator


def _check_topology(accelerator: Accelerator, config: Config) -> None:
    kind = accelerator.distributed_type
    if kind not in SUPPORTED:
        raise ValueError(
            f"accelerate's distributed_type {kind.value} is not supported: use NO, MULTI_GPU or FSDP (version 2)"
        )
    if kind is not DistributedType.FSDP:
        if config.optim.shard_teacher:
            raise ValueError(
                f"--shard_teacher: the launch is {kind.value}, not FSDP; use "
                f"scripts/accelerate_{config.model.family}_fsdp.yaml, or leave the flag out"
            )
        return
    if not accelerator.is_fsdp2:
        raise ValueError("FSDP version 1 is not supported: set fsdp_version: 2 in accelerate's file")
    if config.model.lora_rank:
        return  # only the frozen base is sharded
    if config.optim.optimizer == "adamw_8bit":
        raise ValueError(
            "--optimizer adamw_8bit: its state cannot be sharded: 256 numbers share a scale, and a shard may end among "
            "them; launch without FSDP, or give adamw, whose moments FSDP divides by the number of processes"
        )
    why = METHODS[config.method.method].excludes_fsdp
    if why:
        raise ValueError(
            f"--method {config.method.method}: the launch is FSDP: {why}; use scripts/accelerate_ddp.yaml or "
            "scripts/accelerate_single_gpu.yaml"
        )
