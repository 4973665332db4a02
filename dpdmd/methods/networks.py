"""The three networks of a distillation: their initial weights, their precision, and which of them are trained."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dpdmd.config import Config
from dpdmd.models import lora
from dpdmd.models.attention_backend import use_attention_backend
from dpdmd.models.base import Family
from dpdmd.models.compilation import compile_blocks
from dpdmd.models.registry import adapters


@dataclass
class Networks:
    """Teacher (frozen, in the compute type), student and fake score (trained, fp32 master weights).

    The trained networks keep fp32 weights in every topology. At a learning rate of 1e-5 most AdamW updates are smaller
    than half a bf16 step of the weight, and rounding would remove them. With LoRA all three networks share one base in
    the compute type, and the trained weights are fp32 adapters.
    """

    teacher: nn.Module
    student: nn.Module
    fake: nn.Module


def blocks_owner(network: nn.Module) -> nn.Module:
    """Return the module that holds the network's blocks: with LoRA the shared base, else the network itself."""
    return network.base.network if isinstance(network, lora.AdapterView) else network


def load_networks(
    config: Config, family: Family, resumed_student: Path | None = None, *, place_frozen: bool = True
) -> Networks:
    """Load the three networks; without LoRA the student from a checkpoint's export `resumed_student` if it is given.

    If `place_frozen` is false, the teacher, with LoRA the shared base and its adapters, stays on the CPU: sharding
    places it. The device may be too small for the whole network.

    All networks stay in evaluation mode. No family's network has dropout or batch statistics, the dropout of adapters
    does not depend on the mode, and the teacher must not differ in mode from its copies.
    """

    def load(folder: Path, dtype: torch.dtype) -> nn.Module:
        network = family.load_network(folder, dtype)
        if config.optim.attention_backend:
            use_attention_backend(network, config.optim.attention_backend, family.compute_dtype)
        if config.optim.compile:
            compile_blocks(network, family.block_classes, num_sizes=len(config.data.image_sizes))
        return network

    teacher = load(Path(config.model.teacher_id), family.compute_dtype).requires_grad_(False)
    teacher = teacher.to(family.device) if place_frozen else teacher
    if pair := adapters(config.model):
        teacher, student, fake = lora.share(teacher, pair.student, pair.fake, config.run.seed)
    else:
        student = train_parameters(load(resumed_student or Path(config.model.student_id), torch.float32), family)
        fake = train_parameters(load(Path(config.model.fake_id), torch.float32), family)
    if config.optim.gradient_checkpointing:
        for network in (student, fake):
            recompute_blocks(network, family, config.optim.recomputed_blocks)
    return Networks(teacher, student, fake)


def train_parameters(network: nn.Module, family: Family) -> nn.Module:
    """Let every parameter of the network be trained, but those that no loss reaches. Return the network.

    DDP would wait for gradients of the others, and their optimizer would have no state to resume from.
    """
    network.requires_grad_(True)
    for name in family.layout.frozen(network.config):
        network.get_parameter(name).requires_grad_(False)
    return network


def trained_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that are trained."""
    return [parameter for parameter in network.parameters() if parameter.requires_grad]


def recompute_blocks(network: nn.Module, family: Family, count: str) -> None:
    """Enable gradient checkpointing for the network's first `count` transformer blocks ("all": for every block).

    Other parts that the library recomputes, such as the residual blocks of a UNet, are recomputed at any count.
    """
    blocks = family.blocks(blocks_owner(network))
    not_recomputed = set() if count == "all" else set(blocks[int(count) :])
    recompute = (
        network.base.checkpointed if isinstance(network, lora.AdapterView) else partial(checkpoint, use_reentrant=False)
    )

    def call(module: nn.Module, *arguments: Any) -> Any:
        return module(*arguments) if module in not_recomputed else recompute(module, *arguments)

    network.enable_gradient_checkpointing(call)
