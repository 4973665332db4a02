"""PickScore: a CLIP that was tuned on people's choices between images."""

from pathlib import Path
from typing import ClassVar

import torch

from dpdmd.evaluation.scorers.clip import AgreementScorer, TransformersClip

RELEASE_DIVISOR = 26  # the authors' release reports PickScore / 26


class PickScore(AgreementScorer):
    """logit_scale.exp() cos(text, image), about 21 to 23 (paper, table 1); the release divides by 26."""

    name = "pickscore"
    also: ClassVar = {"pickscore_release": 1 / RELEASE_DIVISOR}

    def __init__(self, processor_folder: Path, model_folder: Path, device: torch.device):
        self.clip = TransformersClip(model_folder, processor=processor_folder)
        self._place(self.clip.network, device)
        self.factor = self.network.logit_scale.double().exp().item()
