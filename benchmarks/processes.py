"""Several processes on a CPU that see each other: how the benchmarks and the tests launch them."""

import os
import signal
import socket
from pathlib import Path

# An address, not --standalone: that one asks for the machine's own name, which not every sandbox can resolve.
LAUNCHER = ("torch.distributed.run", "--master_addr", "127.0.0.1")


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def cpu_environment() -> dict[str, str]:
    """The environment of one process: gloo over the loop-back, one thread each."""
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def kill_all(pid: int) -> None:
    """SIGKILL to a process and to all that it started, at once: a launcher's workers are in sessions of their own."""
    found = [pid]
    for each in found:
        os.kill(each, signal.SIGSTOP)  # it starts no more while we look
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    for each in found:
        os.kill(each, signal.SIGKILL)
