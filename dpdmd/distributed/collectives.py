"""All that knows ranks: the accelerator, wrapping, reductions, and whole state dicts of sharded networks."""

import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    broadcast_object_list,
    gather_object,
)
from torch import Tensor

Item = TypeVar("Item")


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


def broadcast_from_main(accelerator: Accelerator, value: Item) -> Item:
    """Rank 0's `value`, on every rank. Collective."""
    holder = [value]
    broadcast_object_list(holder)
    return holder[0]


def call_on_main(accelerator: Accelerator, function: Callable[[], Item]) -> Item:
    """Call `function` on rank 0 alone, and return its result on every rank. Collective.

    Raises:
        ValueError, OSError: raised by `function` on rank 0; every rank raises it.
    """
    result: Item | None = None
    error: ValueError | OSError | None = None
    if accelerator.is_main_process:
        try:
            result = function()
        except (ValueError, OSError) as raised:
            error = raised
    result, error = broadcast_from_main(accelerator, (result, error))
    if error is not None:
        raise error
    return result


def destroy_process_group() -> None:
    """End the process group after the last collective, once nothing wraps a network; nothing where there is none.

    Gloo's threads let go of a collective's tensors in their own time, and abort a process whose interpreter is gone
    by then. They are joined when the last reference to the group goes; after sharding, torch's own caches keep some
    (on a GPU that group is NCCL's). Collective.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # DistributedDataParallel holds it, and itself in a circle


def lost_peer_message(error: RuntimeError) -> str | None:
    """What torch says of a process of this run that is gone, in one line; None of an error about something else.

    Gloo tells it by a plain RuntimeError, with its own file's name before the words.
    """
    if not (isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)):
        return None
    told = " ".join(str(error).split())
    return re.sub(r"^\[[^]]*\] ", "", told).partition(". ")[0][:160]


def exit_without_peers(status: int) -> None:
    """End this process without its group, whose other processes are gone or will be; nothing where there is none.

    To leave a group in order takes all of it, and gloo's threads abort an interpreter that ends with the group alive.
    """
    if torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
