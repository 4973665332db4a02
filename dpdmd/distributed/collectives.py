"""Communication between the processes of a run, and the end of their process group."""

import gc
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

Item = TypeVar("Item")


def mean_over_processes(accelerator: Accelerator, values: Sequence[Tensor]) -> Tensor:
    """Return the mean of each scalar over all processes, fp32 [len(values)]. Collective: call on every rank."""
    stacked = torch.stack([value.detach().float().reshape(()) for value in values])
    return accelerator.reduce(stacked, reduction="mean")


def share(items: Sequence[Item], rank: int, processes: int) -> list[Item]:
    """Return the rank's share of `items`, of equal length on every rank, since ranks call sharded networks together.

    If `items` do not divide by `processes`, the last ranks repeat the first items.
    """
    length = -(-len(items) // processes)
    return [items[(index * processes + rank) % len(items)] for index in range(length)]


def gather(accelerator: Accelerator, items: list[Item]) -> list[Item]:
    """Return the joined lists of all ranks, on every rank. Collective: call on every rank."""
    return gather_object(items) if accelerator.num_processes > 1 else items


def broadcast_from_main(accelerator: Accelerator, value: Item) -> Item:
    """Return rank 0's `value` on every rank. Collective: call on every rank."""
    if accelerator.num_processes == 1:
        return value
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


def raise_everywhere(accelerator: Accelerator, error: Exception | None) -> None:
    """Raise the first rank's error on all ranks, if any has one: the others would wait for it. Collective."""
    for found in gather(accelerator, [error]):
        if found is not None:
            raise found


def destroy_process_group() -> None:
    """Destroy the process group, if there is one. Collective: call on every rank after the last collective.

    Gloo's threads release a collective's tensors with a delay, and abort a process whose interpreter has ended by then.
    The threads are joined when the last reference to the group is deleted, so no wrapped network may be left. After
    sharding, torch's own caches keep references (on a GPU, to NCCL's group).
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # DistributedDataParallel references the group, and is part of a reference cycle


def lost_peer_message(error: RuntimeError) -> str | None:
    """Return one line of torch's message if `error` reports that another process of the run has ended, else None.

    Gloo raises a plain RuntimeError, whose message starts with the name of gloo's source file.
    """
    if not (isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)):
        return None
    message = " ".join(str(error).split())
    return re.sub(r"^\[[^]]*\] ", "", message).partition(". ")[0][:160]


def exit_without_peers(status: int) -> None:
    """Exit at once if there is a process group whose other processes have ended or will end.

    Destroying the group needs all processes, and gloo's threads abort an interpreter that ends before the group.
    """
    if torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
