"""Run `dpdmd.train` with FSDP2 on CPU processes, where accelerate ignores an FSDP plugin: its state is set by hand.

Arguments "+FSDP2", "+gathered" and "+whole" divide the command lines of several runs, which follow each other in one
process group, and say whether the next one is sharded, sharded with weights that stay gathered after a forward pass, or
as launched: DDP, or one process. Without them the only run is sharded. Each rank prints how many frozen numbers it
holds after sharding.
"""

import os
import sys

import accelerate
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor

from dpdmd import train
from dpdmd.distributed import collectives, sharding
from dpdmd.models.registry import family_class
from dpdmd.report import writer


def sharding_accelerator(*args, **kwargs) -> Accelerator:
    accelerator = Accelerator(*args, **kwargs)
    launched.append(accelerator.distributed_type)  # later ones are set here
    for state in (PartialState, AcceleratorState):
        state._shared_state["distributed_type"] = launched[0] if kind == "+whole" else DistributedType.FSDP
    if kind == "+whole":
        return accelerator
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=list(family_class(family).block_classes),
        reshard_after_forward=kind == "+FSDP2",
        cpu_ram_efficient_loading=False,
    )
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    assert accelerator.is_fsdp2
    return accelerator


def reporting_shard_frozen(network, *arguments) -> None:
    before = {name: parameter.numel() for name, parameter in network.named_parameters() if not parameter.requires_grad}
    shard_frozen(network, *arguments)
    after = [parameter for name, parameter in network.named_parameters() if name in before]
    held = sum(each.to_local().numel() if isinstance(each, DTensor) else each.numel() for each in after)
    print(f"rank {os.environ['RANK']} holds {held} of {sum(before.values())} frozen numbers", file=sys.stderr)


shard_frozen, sharding.shard_frozen = sharding.shard_frozen, reporting_shard_frozen
writer.refresh = lambda _: None  # a quarter of a short run
accelerate.Accelerator = sharding_accelerator
launched: list[DistributedType] = []
runs: list[tuple[str, list[str]]] = []
for argument in sys.argv[1:] if sys.argv[1].startswith("+") else ["+FSDP2", *sys.argv[1:]]:
    if argument in ("+FSDP2", "+gathered", "+whole"):
        runs.append((argument, []))
    else:
        runs[-1][1].append(argument)
destroy_process_group, collectives.destroy_process_group = collectives.destroy_process_group, lambda: None
while runs:
    kind, command = runs.pop(0)
    family = command[command.index("--family") + 1] if "--family" in command else "sd35"
    if not runs:
        collectives.destroy_process_group = destroy_process_group
    if status := train.main(command):
        break
sys.stdout.flush()
sys.stderr.flush()
os._exit(status)  # torch keeps the sharded group and gloo's threads: see `collectives.destroy_process_group`
