"""PickScore: a CLIP that was fine-tuned on people's choices between images."""

from collections.abc import Sequence
from pathlib import Path

import torch

from dpdmd.evaluation.scorers.base import Check
from dpdmd.evaluation.scorers.clip import AgreementScorer, TransformersClip, check_clip
from dpdmd.models.checks.transformers_parts import check_image_processor


class PickScore(AgreementScorer):
    """logit_scale.exp() cos(text, image), about 21 to 23 (paper, table 1)."""

    @classmethod
    def checks(cls, processor_folder: Path, model_folder: Path) -> Sequence[Check]:
        return [lambda: check_image_processor(processor_folder), lambda: check_clip(model_folder, processor_folder)]

    def __init__(self, processor_folder: Path, model_folder: Path, device: torch.device):
        self.clip = TransformersClip(model_folder, processor=processor_folder)
        self.set_network(self.clip.network, device)
        self.factor = self.network.logit_scale.double().exp().item()
