"""`--compile`: torch.compile of each transformer block of a network, in place."""

import os
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import nn

# Graphs that a process may keep for a block: for kinds of block, with and without gradient, batch sizes and precisions,
# of three networks. A run with evaluation needs more than torch's limit of 8.
NUM_GRAPHS = 64


def check_compiler(device: torch.device) -> None:
    """Check that torch's inductor can build kernels on this machine.

    Raises:
        ValueError: triton or a compiler is missing.
    """
    needed, name = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++"), "a C++ compiler"
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise ValueError("--compile: on a GPU it needs triton; pip install triton, or leave the flag out")
        needed, name = os.environ.get("CC", "gcc"), "a C compiler"
    if shutil.which(needed) is None:
        raise ValueError(f"--compile: it needs {name}, and there is no {needed}; install it, or leave the flag out")


def compile_blocks(
    network: nn.Module, block_classes: Sequence[str], backend: str = "inductor", *, num_sizes: int = 1
) -> None:
    """Compile every block of `network`, each as one graph. Call it before the network is wrapped.

    With several image sizes each size has graphs of its own. A graph for any size would depend on the order in which
    sizes come, so a resumed run would compute with other kernels than a run in one piece.

    Blocks are compiled one by one, so that equal blocks share their graphs, and sharding and gradient checkpointing
    stay between the graphs. In place: no name in the state dict changes, and hooks added later by sharding still run.
    """
    options, graphs = torch._dynamo.config, NUM_GRAPHS * num_sizes
    options.recompile_limit = max(graphs, options.recompile_limit)
    options.accumulated_recompile_limit = max(4 * graphs, options.accumulated_recompile_limit)
    for module in network.modules():
        if type(module).__name__ in block_classes:
            module.compile(fullgraph=True, backend=backend, dynamic=False if num_sizes > 1 else None)
