"""Count the memory of SD3.5-Medium's updates at 1024 x 1024, beside the estimate: no GPU, no weights, no memory.

    python benchmarks/memory_count.py --out benchmarks/results

The updates run on tensors with shapes but no data (FakeTensorMode), and every storage is counted while it lives.
Operators are the CPU's, with CUDA's rule that autocast computes LayerNorm in fp32; their attention keeps what a flash
kernel keeps. Not counted: optimizers, text encoders, and the memory of libraries and the allocator.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import SD3Transformer2DModel
from result_file import result_head, write_result
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dpdmd import config
from dpdmd.evaluation.in_loop_setup import EvalSetup
from dpdmd.methods import updates
from dpdmd.methods.context import DistillationContext, MicroBatch
from dpdmd.methods.networks import Networks, recompute_blocks
from dpdmd.models import lora
from dpdmd.models.base import TextEmbedding
from dpdmd.models.counted_memory import LiveStorages, as_on_cuda, held_by
from dpdmd.models.hollow import write_hollow
from dpdmd.models.noise_schedule import FlowSchedule
from dpdmd.models.registry import LAYOUTS, adapters
from dpdmd.models.sd35.family import SD35
from dpdmd.models.sd35.official import OFFICIAL
from dpdmd.training.memory_estimate import estimate_memory
from dpdmd.training.memory_items import FAKE, STUDENT, Topology

TEXT_TOKENS = 77 + 256


def kept_bytes(network: nn.Module, call: Callable[[], Any]) -> int:
    """Return the bytes of the unique storages that autograd keeps from `call`, without those of the network."""
    own = {tensor.untyped_storage()._cdata for tensor in held_by(network)}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def networks(settings: config.Config) -> Networks:
    """Build the three networks like `load_networks`, without data."""
    bf16 = torch.bfloat16 if settings.optim.bf16 else torch.float32
    teacher = _make(bf16).requires_grad_(False)
    if pair := adapters(settings.model):
        # peft moves new layers to their base's device and type; tensors without data cannot be moved in place.
        with patch.object(nn.Module, "to", lambda module, *_, **__: module):
            made = Networks(*lora.share(teacher, pair.student, pair.fake, 0))
    else:
        made = Networks(teacher, _make(torch.float32), _make(torch.float32))
    if settings.optim.gradient_checkpointing:
        for network in (made.student, made.fake):
            recompute_blocks(network, SD35(torch.device("cpu"), bf16), settings.optim.recomputed_blocks)
    return made


def _make(dtype: torch.dtype) -> nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return SD3Transformer2DModel(**OFFICIAL["transformer"]).eval()
    finally:
        torch.set_default_dtype(before)


def count_updates(settings: config.Config) -> dict[str, int]:
    """Return for each phase the most that lives at a time beside the weights, backward pass included."""
    optim, schedule, found = settings.optim, FlowSchedule(3.0), {}
    dtype = torch.bfloat16 if optim.bf16 else torch.float32
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_cuda():
        made = networks(settings)
        text = TextEmbedding(
            torch.empty(optim.batch_size, TEXT_TOKENS, 4096, dtype=dtype),
            torch.empty(optim.batch_size, 2048, dtype=dtype),
        )
        run = DistillationContext(
            config=settings.method,
            family=SD35(torch.device("cpu"), dtype),
            schedule=schedule,
            networks=made,
            student_forward=made.student,
            fake_forward=made.fake,
            null=TextEmbedding(text.context[:1], text.pooled[:1]),
            latent_shapes=[(16, settings.data.height // 8, settings.data.width // 8)],
            seed=0,
            **DistillationContext.grids(settings.method, schedule, torch.device("cpu")),
        )
        batch = MicroBatch(text, 0, range(optim.batch_size), 0)
        everything = [made.teacher, made.student, made.fake]
        if settings.model.lora_rank:
            everything.append(made.teacher.base.network)
        known = [tensor for network in everything for tensor in [*network.parameters(), *network.buffers()]]
        for phase, loss in ((FAKE, updates.fake_score_loss), (STUDENT, updates.student_loss)):
            with LiveStorages(known) as live:
                loss(run, batch).loss.backward()
            found[phase] = live.peak
            for tensor in known:
                tensor.grad = None
    return found


def estimate_updates(settings: config.Config) -> dict[str, int]:
    """Return the same by the estimate: its items without weights, optimizers and other models."""
    estimate = estimate_memory(settings, EvalSetup([], {}, ""), Topology())
    return {phase: sum(item.bytes for item in estimate.items if item.phases == (phase,)) for phase in (FAKE, STUDENT)}


CASES = {
    "full, recomputed": ["--gradient_checkpointing"],
    "full": [],
    "LoRA 64, recomputed": ["--gradient_checkpointing", "--lora_rank", "64"],
    "LoRA 64": ["--lora_rank", "64"],
    "LoRA 64, 12 of 24 recomputed": ["--gradient_checkpointing", "--recomputed_blocks", "12", "--lora_rank", "64"],
}


def write_results(out: Path, rows: list[tuple[str, int, str, int, int]]) -> str:
    """Write the table and its numbers; return the table."""
    lines = [
        *result_head(
            "SD3.5-Medium's updates at 1024 x 1024, bf16: live storages beside the estimate",
            "Counted without a GPU (see the program's head)",
        ),
        "| trained | batch | update | most alive beside weights, GB | estimate, GB | estimate / counted |",
        "|---|---|---|---|---|---|",
        *(f"| {n} | {b} | {p} | {c / 1e9:.2f} | {q / 1e9:.2f} | {q / c:.2f} |" for n, b, p, c, q in rows),
    ]
    return write_result(out, "memory_count", lines, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    rows: list[tuple[str, int, str, int, int]] = []
    table = ""
    with tempfile.TemporaryDirectory() as work:
        write_hollow(LAYOUTS["sd35"], Path(work) / "sd35")
        # One step to the anchor: further ones take no more memory, and minutes.
        common = ["--teacher_id", f"{work}/sd35", "--bf16", "--k_anchor", "1"]
        for name, batch in product(args.cases, args.batch_sizes):
            settings = config.parse([*common, "--batch_size", str(batch), *CASES[name]])
            counted, estimated = count_updates(settings), estimate_updates(settings)
            rows += [(name, batch, phase, counted[phase], estimated[phase]) for phase in counted]
            table = write_results(args.out, rows)
    sys.stdout.write(table)


if __name__ == "__main__":
    main()
