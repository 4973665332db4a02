"""All that knows ranks: the accelerator, wrapping, reductions, and whole state dicts of sharded networks."""

import gc
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    broadcast_object_list,
    extract_model_from_parallel,
    gather_object,
    set_seed,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dpdmd.config import Config
from dpdmd.distributed.launch_env import read_launch
from dpdmd.methods.registry import DISCRIMINATOR, trained
from dpdmd.training.optimizers import is_quantised, quantised_state, restore_quantised_state
from dpdmd.utils.text_files import in_short

Item = TypeVar("Item")
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


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
        raise ValueError(f"the launch: accelerate does not start ({type(error).__name__}: {in_short(error)})") from None
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
    if DISCRIMINATOR in trained(config.method) and accelerator.distributed_type is DistributedType.FSDP:
        raise ValueError(
            "--method dmd_gan: the launch is FSDP, whose sharded blocks give no features and no gradient to a sample "
            "alone; use scripts/accelerate_ddp.yaml or scripts/accelerate_single_gpu.yaml"
        )
    set_seed(config.run.seed)  # no draw of ours reads the global state; this covers the libraries'
    set_cuda_arithmetic(config.optim.bf16)
    return accelerator


def set_cuda_arithmetic(bf16: bool) -> None:
    """How CUDA devices compute; nothing on a CPU reads these switches.

    No TF32: in fp32, fp32 is meant, and torch's own default would round what convolutions multiply to 10 bits. With
    `bf16` no product of the networks is left in fp32 (tests/test_precision.py), so TF32 would hasten the scorers
    alone, whose scores are compared with the root programs'. Attention needs no switch: diffusers calls torch's
    scaled_dot_product_attention, without a mask, and torch takes its flash kernels for bf16 by itself.

    With `bf16` cuDNN measures which of its algorithms is the fastest for each shape. Only the decoder has
    convolutions worth that, and it meets a few shapes thousands of times. In fp32 it does not: the choice may differ
    between two runs, and with it a picture's last bits.
    """
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    torch.backends.cudnn.benchmark = bf16


def prepare(accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
    """Place and wrap one trained network with its optimizer; FSDP2 takes one pair a call. Collective."""
    return accelerator.prepare(network, optimizer)


def shard_frozen(network: nn.Module, block_classes: Sequence[str]) -> None:
    """Shard a network that is not trained, block by block, in place. Collective.

    Not `prepare`d, so that it lands in no checkpoint and needs no optimizer.
    """
    for module in network.modules():
        if type(module).__name__ in block_classes:
            fully_shard(module)
    fully_shard(network)


@contextmanager
def synchronise_when(accelerator: Accelerator, networks: Sequence[nn.Module], condition: bool) -> Iterator[None]:
    """Gradients are averaged over processes in this backward pass only if `condition`."""
    with ExitStack() as stack:
        if not condition:
            for network in networks:
                stack.enter_context(accelerator.no_sync(network))
        yield


def mean_over_processes(accelerator: Accelerator, values: Sequence[Tensor]) -> Tensor:
    """Mean of scalars over processes, in one reduction, fp32 [len(values)]. Collective."""
    stacked = torch.stack([value.detach().float().reshape(()) for value in values])
    return accelerator.reduce(stacked, reduction="mean")


def share(items: Sequence[Item], rank: int, processes: int) -> list[Item]:
    """What one rank does of `items`: as many on every rank, since sharded networks are called in step.

    Where they do not divide, some ranks do one that another does too.
    """
    rounds = -(-len(items) // processes)
    return [items[(turn * processes + rank) % len(items)] for turn in range(rounds)]


def gather(accelerator: Accelerator, items: list[Item]) -> list[Item]:
    """The lists of all ranks joined, on every rank. Collective."""
    return gather_object(items) if accelerator.num_processes > 1 else items


def from_main(accelerator: Accelerator, value: Item) -> Item:
    """Rank 0's `value`, on every rank. Collective."""
    holder = [value]
    broadcast_object_list(holder)
    return holder[0]


def leave() -> None:
    """End the process group after the last collective, once nothing wraps a network; nothing where there is none.

    Gloo's threads let go of a collective's tensors in their own time, and abort a process whose interpreter is gone
    by then. They are joined when the last reference to the group goes; after sharding, torch's own caches keep some
    (on a GPU that group is NCCL's). Collective.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # DistributedDataParallel holds it, and itself in a circle


def lost_peer(error: RuntimeError) -> str | None:
    """What torch says of a process of this run that is gone, in one line; None of an error about something else.

    Gloo tells it by a plain RuntimeError, with its own file's name before the words.
    """
    if not (isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)):
        return None
    told = " ".join(str(error).split())
    return re.sub(r"^\[[^]]*\] ", "", told).partition(". ")[0][:160]


def abandon(status: int) -> None:
    """End this process without its group, whose other processes are gone or will be; nothing where there is none.

    To leave a group in order takes all of it, and gloo's threads abort an interpreter that ends with the group alive.
    """
    if torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """Global 2-norm of all gradients, over all shards, a plain scalar tensor. Collective under sharding."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def clip_gradients(parameters: list[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Scale all gradients by max_norm / norm where the global `norm` exceeds `max_norm`."""
    torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)


def unwrapped(optimizer: Any) -> torch.optim.Optimizer:
    """torch's own optimizer inside accelerate's."""
    return getattr(optimizer, "optimizer", optimizer)


def _apart(state: dict[str, Tensor], live: Iterable[Any]) -> dict[str, Tensor]:
    """`state` with a copy of each entry that shares memory with one of `live`: torch copies only from a device."""
    tensors = [value.to_local() if isinstance(value, DTensor) else value for value in live if torch.is_tensor(value)]
    places = {value.untyped_storage().data_ptr() for value in tensors}
    return {
        name: value.clone() if value.untyped_storage().data_ptr() in places else value for name, value in state.items()
    }


def whole_network_state(network: nn.Module) -> dict[str, Tensor]:
    """A copy of the network's weights on the CPU, unsharded; under sharding empty on all ranks but 0. Collective."""
    state = get_model_state_dict(network, options=_WHOLE)
    return _apart(state, [*network.parameters(), *network.buffers()])


def restore_network_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Inverse of `whole_network_state`, into a network of any topology; strict. Collective."""
    set_model_state_dict(network, state, options=_WHOLE)


def whole_optimizer_state(network: nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """A copy of the optimizer's state as "parameter|entry" -> tensor, unsharded, on the CPU of rank 0. Collective.

    Empty on the other ranks, and for an optimizer that has not stepped yet: asking torch for its state would make
    it step.
    """
    raw = unwrapped(optimizer)
    if not raw.state:
        return {}
    if is_quantised(raw):
        return quantised_state(extract_model_from_parallel(network), raw)
    state = get_optimizer_state_dict(network, raw, options=_WHOLE).get("state", {})
    flat = {f"{name}|{key}": value for name, entries in state.items() for key, value in entries.items()}
    return _apart(flat, [value for entries in raw.state.values() for value in entries.values()])


def restore_optimizer_state(network: nn.Module, optimizer: Any, saved: dict[str, Tensor]) -> None:
    """Inverse of `whole_optimizer_state`, into an optimizer of any topology. Collective."""
    if not saved:
        return
    raw = unwrapped(optimizer)
    if is_quantised(raw):
        restore_quantised_state(extract_model_from_parallel(network), raw, saved)
        return
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in saved.items():
        parameter, key = name.rsplit("|", 1)
        state.setdefault(parameter, {})[key] = value
    options = [{key: value for key, value in group.items() if key != "params"} for group in raw.param_groups]
    groups = [{**group, "params": list(state)} for group in options]
    set_optimizer_state_dict(network, raw, {"state": state, "param_groups": groups}, options=_WHOLE)
