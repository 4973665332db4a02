"""Run `dpdmd.train` with FSDP2 on CPU processes, where accelerate ignores an FSDP plugin: its state is set by hand."""

import os
import sys

import accelerate
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from dpdmd import train
from dpdmd.models.registry import family_class
from dpdmd.training import accelerator as ours

FAMILY = sys.argv[sys.argv.index("--family") + 1] if "--family" in sys.argv else "sd35"


def sharding_accelerator(*args, **kwargs) -> accelerate.Accelerator:
    accelerator = accelerate.Accelerator(*args, **kwargs)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(family_class(FAMILY).block_classes),
        reshard_after_forward=True,
        cpu_ram_efficient_loading=False,
    )
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    assert accelerator.is_fsdp2
    return accelerator


ours.Accelerator = sharding_accelerator
status = train.main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)  # torch keeps the sharded group and gloo's threads: see `collectives.destroy_process_group`
