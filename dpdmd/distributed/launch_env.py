"""The launcher's environment variables of this process, checked before the process waits for other ranks.

Imports nothing heavy. Without these checks a library reports a wrong variable without its name, or not at all:
processes that do not find each other wait for half an hour.
"""

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from dpdmd.utils import strict_yaml
from dpdmd.utils.library_settings import ARITHMETIC, FALSE, TRUE, Setting, check_attention_variable, check_settings

MAX_PROCESSES = 2**20
_TYPES = ("NO", "MULTI_GPU", "MULTI_CPU", "FSDP")  # distributed_type of accelerate's file
_COUNTS = {"num_processes": "-1|[1-9][0-9]*", "num_machines": "[1-9][0-9]*", "machine_rank": "[0-9]+"}
_SWITCHES = (
    *("ACCELERATE_USE_CPU", "ACCELERATE_USE_FSDP", "ACCELERATE_DEBUG_MODE", "ACCELERATE_CPU_AFFINITY", "FORK_LAUNCHED"),
    *(f"ACCELERATE_DYNAMO_USE_{name}" for name in ("DYNAMIC", "FULLGRAPH", "REGIONAL_COMPILATION")),
)
_UNSUPPORTED = {  # variable of accelerate's launcher -> the entry of accelerate's file that sets it
    "ACCELERATE_USE_DEEPSPEED": "distributed_type DEEPSPEED",
    "ACCELERATE_USE_MEGATRON_LM": "distributed_type MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config",
}
_SETTINGS = (
    Setting("ACCELERATE_DYNAMO_BACKEND", ("no",), "--compile does that", "dynamo_backend"),
    Setting("ACCELERATE_FP8_BACKEND", ("no",), "fp8 is not supported, --bf16 is", "fp8_backend"),
)
_CHECKPOINTING = "--gradient_checkpointing does that"
_FSDP_SETTINGS = (  # read if ACCELERATE_USE_FSDP is true
    Setting("FSDP_ACTIVATION_CHECKPOINTING", FALSE, _CHECKPOINTING, "fsdp_activation_checkpointing"),
    Setting("FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD", FALSE, _CHECKPOINTING, "fsdp_activation_checkpointing_offload"),
    Setting("FSDP_OFFLOAD_PARAMS", FALSE, "trained weights stay on the GPU", "fsdp_offload_params"),
    Setting(  # transformers would leave text encoders and scorers without weights on every rank but 0
        "FSDP_CPU_RAM_EFFICIENT_LOADING", FALSE, "every rank loads its weights itself", "fsdp_cpu_ram_efficient_loading"
    ),
    Setting("FSDP_IGNORED_MODULES", (), "no gradients would be averaged for them", "fsdp_ignored_modules"),
)
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # to form a process group
_START = "start with accelerate launch or torchrun, which set all of them, or unset them all"


@dataclass(frozen=True)
class Launch:
    """The number of launched processes and this process's rank, among all of them and on this machine."""

    processes: int
    rank: int
    local_rank: int
    local_processes: int


def read_launch() -> Launch:
    """Return this process's launch; one process if there is no launcher.

    Raises:
        ValueError: a variable is not a number, or two variables contradict each other; the message names them.
    """
    processes = _number("WORLD_SIZE", 1, least=1)
    rank, local_rank = _number("RANK", 0), _number("LOCAL_RANK", 0, least=-1)  # -1 means none, as in torch
    launched = "WORLD_SIZE" in os.environ
    on_this_machine = _number("LOCAL_WORLD_SIZE", processes if launched else MAX_PROCESSES, least=1)
    if rank >= processes:
        raise ValueError(f"RANK is {rank}, but WORLD_SIZE is {processes}, and ranks count from 0; {_START}")
    if local_rank >= on_this_machine:
        raise ValueError(f"LOCAL_RANK is {local_rank}, but {on_this_machine} processes were launched here; {_START}")
    return Launch(processes, rank, max(0, local_rank), min(on_this_machine, processes))


def _number(name: str, default: int, least: int = 0) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    digits = text.strip().removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()) or not least <= (number := int(text[:20])) <= MAX_PROCESSES:
        raise ValueError(f"{name} is {text[:40]!r}, which must be a whole number, at least {least}; {_START}")
    return number


def check_launch() -> Launch:
    """Return this process's launch, and check every variable that a process group or a library needs.

    Raises:
        ValueError: a variable is missing, wrong or not supported; one line that names the variable.
    """
    launch = read_launch()
    for name in _SWITCHES:
        if name in os.environ and os.environ[name].lower() not in (*TRUE, *FALSE):
            raise ValueError(f"{name} is {os.environ[name]!r}, which must be true or false")
    for name, entry in _UNSUPPORTED.items():
        if is_on(name):
            raise ValueError(
                f"accelerate's {entry} is not supported: use NO, MULTI_GPU or FSDP (version 2), as "
                "scripts/accelerate_*.yaml do"
            )
    check_settings((*_SETTINGS, *ARITHMETIC, *(_FSDP_SETTINGS if is_on("ACCELERATE_USE_FSDP") else ())))
    check_attention_variable()
    _check_device()
    if launch.processes > 1:
        _check_rendezvous(launch.processes)
    return launch


def check_single_process(reason: str) -> None:
    """Check that a program that works on one process was not launched on several; `reason` says why it does.

    Raises:
        ValueError: several processes were launched, or a variable of the launcher is wrong.
    """
    processes = check_launch().processes
    if processes > 1:
        raise ValueError(f"{processes} processes were launched: start it on one process: {reason}")


def single_process_warning() -> str:
    """Return a warning if accelerate's launcher was to start several processes but started one; else "".

    For one process, this launcher sets no MASTER_ADDR. For several processes without `--multi_gpu`, as on a CPU, it
    sets MASTER_ADDR and starts one process, without RANK and WORLD_SIZE.
    """
    asked = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if not asked or any(name in os.environ for name in ("WORLD_SIZE", "RANK")):
        return ""
    return (
        "accelerate launch was to start several processes (--num_processes or num_processes in its file) but started "
        "one; on a CPU use ACCELERATE_USE_CPU=true torchrun --nproc_per_node N"
    )


def check_accelerate_file(path: Path, place: str) -> None:
    """Check the entries of accelerate's file without which its launcher ends in a traceback.

    Raises:
        ValueError: one line that begins with `place`.
    """
    values = strict_yaml.read(path, place)
    if not isinstance(values, dict) or "distributed_type" not in values:
        raise ValueError(f"{place}: no file of accelerate (no distributed_type); give one of scripts/accelerate_*.yaml")
    kind = values["distributed_type"]
    if kind not in (*_TYPES, False):  # a bare NO is false
        raise ValueError(f"{place}: distributed_type is {kind!r}, which must be one of {', '.join(_TYPES)}")
    for name, pattern in _COUNTS.items():
        if values.get(name) is not None and not re.fullmatch(pattern, str(values[name])):
            raise ValueError(f"{place}: {name} is {values[name]!r}, which must be a whole number")


def is_on(name: str) -> bool:
    """Return whether the variable `name`, one of accelerate's switches, is true."""
    return os.environ.get(name, "").lower() in TRUE


def uses_gpu() -> bool:
    """Return whether this process runs on a GPU: there is one, and accelerate is not told to use the CPU."""
    import torch

    on_cpu = is_on("ACCELERATE_USE_CPU") or os.environ.get("ACCELERATE_TORCH_DEVICE", "").startswith("cpu")
    return torch.cuda.is_available() and not on_cpu


def _check_device() -> None:
    device = os.environ.get("ACCELERATE_TORCH_DEVICE")
    if device is not None and device.partition(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"ACCELERATE_TORCH_DEVICE is {device!r}, which must be cpu or cuda; unset it")


def _check_rendezvous(processes: int) -> None:
    """Check the address at which the processes form their group."""
    for name in _NEEDED:
        if not os.environ.get(name):
            raise ValueError(f"WORLD_SIZE is {processes}, but {name} is not set; {_START}")
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"MASTER_PORT is {port[:40]!r}, which must be a port, 1 to 65535; {_START}")
    try:
        socket.getaddrinfo(address, int(port))
    except (OSError, UnicodeError) as error:
        raise ValueError(f"MASTER_ADDR is {address!r}, which cannot be resolved ({error}); {_START}") from None
