"""The three networks of a distillation: who starts from where, who is trained, in which precision."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from dpdmd.config import Config
from dpdmd.families.base import Family


@dataclass
class Networks:
    """Teacher (frozen, in the compute type), student and fake score (trained, fp32 master weights).

    The two trained ones keep fp32 weights in every topology: at a learning rate of 1e-5 most AdamW updates are
    smaller than half a bf16 step of the weight, and would be rounded away.
    """

    teacher: nn.Module
    student: nn.Module
    fake: nn.Module


def load_networks(config: Config, family: Family, student_folder: Path) -> Networks:
    """Load all three; the student from `student_folder`: where it starts, or the export that a run is resumed from.

    Everything stays in evaluation mode: none of the families' networks has dropout or batch statistics, and the
    mode of the teacher and of its copies must not differ.
    """
    teacher = family.load_network(Path(config.model.teacher_id), family.compute_dtype).requires_grad_(False)
    student = family.load_network(student_folder, torch.float32).requires_grad_(True)
    fake = family.load_network(Path(config.model.fake_id), torch.float32).requires_grad_(True)
    if config.optim.gradient_checkpointing:
        student.enable_gradient_checkpointing()
        fake.enable_gradient_checkpointing()
    return Networks(teacher.to(family.device), student, fake)
