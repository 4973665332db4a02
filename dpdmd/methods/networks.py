"""The three networks of a distillation: who starts from where, who is trained, in which precision."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from dpdmd.config import Config
from dpdmd.models import lora
from dpdmd.models.base import Family
from dpdmd.models.compilation import compile_blocks
from dpdmd.models.registry import adapters


@dataclass
class Networks:
    """Teacher (frozen, in the compute type), student and fake score (trained, fp32 master weights).

    The two trained ones keep fp32 weights in every topology: at a learning rate of 1e-5 most AdamW updates are
    smaller than half a bf16 step of the weight, and would be rounded away. With LoRA all three are roles of one base
    in the compute type, and what is trained are fp32 adapters.
    """

    teacher: nn.Module
    student: nn.Module
    fake: nn.Module


def blocks_owner(network: nn.Module) -> nn.Module:
    """The module that holds a network's blocks: itself, or of a role the base that it plays on."""
    return network.base.network if isinstance(network, lora.AdapterView) else network


def load_networks(config: Config, family: Family, resumed_student: Path | None = None) -> Networks:
    """Load all three; the student as the export `resumed_student` of a checkpoint has it, where that is given.

    Everything stays in evaluation mode: none of the families' networks has dropout or batch statistics, and the
    mode of the teacher and of its copies must not differ.
    """

    def load(folder: Path, dtype: torch.dtype) -> nn.Module:
        network = family.load_network(folder, dtype)
        if config.optim.compile:
            compile_blocks(network, family.block_classes)
        return network

    teacher = load(Path(config.model.teacher_id), family.compute_dtype).requires_grad_(False).to(family.device)
    if pair := adapters(config.model):
        teacher, student, fake = lora.share(teacher, pair.student, pair.fake, config.run.seed)
        if resumed_student:
            student.load_state_dict(family.read_lora(resumed_student), strict=True)
    else:
        student = load(resumed_student or Path(config.model.student_id), torch.float32)
        fake = load(Path(config.model.fake_id), torch.float32)
        student, fake = student.requires_grad_(True), fake.requires_grad_(True)
    if config.optim.gradient_checkpointing:
        for network in (student, fake):
            recompute_blocks(network, family, config.optim.recomputed_blocks)
    return Networks(teacher, student, fake)


def recompute_blocks(network: nn.Module, family: Family, count: str) -> None:
    """Gradient checkpointing of a network's first `count` transformer blocks ("all": of them all).

    What else the library recomputes, such as the residual blocks of a UNet, is recomputed whatever the count.
    """
    blocks = family.feature_blocks(blocks_owner(network))
    keeping = set() if count == "all" else set(blocks[int(count) :])
    again = (
        network.base.checkpointed if isinstance(network, lora.AdapterView) else partial(checkpoint, use_reentrant=False)
    )

    def call(module: nn.Module, *arguments: Any) -> Any:
        return module(*arguments) if module in keeping else again(module, *arguments)

    network.enable_gradient_checkpointing(call)
