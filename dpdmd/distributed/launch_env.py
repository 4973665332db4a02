"""What the launcher says of this process by its environment variables, checked before anything waits for other ranks.

Imports nothing heavy. A variable that is wrong would otherwise be told by a library without its name, or not at all:
processes that do not find each other wait for half an hour.
"""

import os
import socket
from dataclasses import dataclass

MAX_PROCESSES = 2**20
_TRUE, _FALSE = ("1", "y", "yes", "t", "true", "on"), ("0", "n", "no", "f", "false", "off")
_SWITCHES = ("ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP", "ACCELERATE_DEBUG_MODE", "FORK_LAUNCHED")
_UNSUPPORTED = {  # switch of accelerate's launcher -> the distributed_type, or the entry of its file, that sets it
    "ACCELERATE_USE_DEEPSPEED": "distributed_type DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM": "distributed_type MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # by processes that look for each other
_START = "start with accelerate launch or torchrun, which set all of them, or unset them all"


@dataclass(frozen=True)
class Launch:
    """This process among those that were launched."""

    processes: int
    rank: int
    local_rank: int


def read_launch() -> Launch:
    """What the launcher says; one process where there is none.

    Raises:
        ValueError: a variable is no number, or they contradict each other; the message names it.
    """
    processes = _number("WORLD_SIZE", 1, least=1)
    rank, local_rank = _number("RANK", 0), _number("LOCAL_RANK", 0, least=-1)  # -1 is torch's word for none
    here = _number("LOCAL_WORLD_SIZE", processes if "WORLD_SIZE" in os.environ else MAX_PROCESSES, least=1)
    if rank >= processes:
        raise ValueError(f"RANK is {rank}, but WORLD_SIZE is {processes}, and ranks count from 0; {_START}")
    if local_rank >= here:
        raise ValueError(f"LOCAL_RANK is {local_rank}, but {here} processes were launched here; {_START}")
    return Launch(processes, rank, max(0, local_rank))


def _number(name: str, default: int, least: int = 0) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    digits = text.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()) or not least <= (number := int(text[:20])) <= MAX_PROCESSES:
        raise ValueError(f"{name} is {text[:40]!r}, which must be a whole number, at least {least}; {_START}")
    return number


def check_launch() -> Launch:
    """Check all that a process needs to find the others, too.

    Raises:
        ValueError: one line that names the variable.
    """
    launch = read_launch()
    for name in _SWITCHES:
        if name in os.environ and os.environ[name].lower() not in (*_TRUE, *_FALSE):
            raise ValueError(f"{name} is {os.environ[name]!r}, which must be true or false")
    for name, entry in _UNSUPPORTED.items():
        if is_on(name):
            raise ValueError(
                f"accelerate's {entry} is not supported: use NO, MULTI_GPU or FSDP (version 2), as "
                "scripts/accelerate_*.yaml do"
            )
    _check_device()
    if launch.processes > 1:
        _check_meeting(launch.processes)
    return launch


def is_on(name: str) -> bool:
    """Whether one of accelerate's switches is set."""
    return os.environ.get(name, "").lower() in _TRUE


def _check_device() -> None:
    device = os.environ.get("ACCELERATE_TORCH_DEVICE")
    if device is not None and device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"ACCELERATE_TORCH_DEVICE is {device!r}, which must be cpu or cuda; unset it")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise ValueError(f"accelerate's dynamo_backend is {backend}, but --compile does that: set it to 'no' there")


def _check_meeting(processes: int) -> None:
    """Check the place where several processes meet."""
    for name in _NEEDED:
        if not os.environ.get(name):
            raise ValueError(f"WORLD_SIZE is {processes}, but {name} is not set; {_START}")
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"MASTER_PORT is {port[:40]!r}, which must be a port, 1 to 65535; {_START}")
    try:
        socket.getaddrinfo(address, int(port))
    except (OSError, UnicodeError) as error:
        raise ValueError(f"MASTER_ADDR is {address!r}, which no name server knows ({error}); {_START}") from None
