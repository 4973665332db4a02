"""PickScore: a CLIP that was tuned on people's choices between pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from dpdmd.evaluation.scorers.base import Sample, Score, ValueScorer
from dpdmd.evaluation.scorers.clip import TransformersClip, text_image_cosine

RELEASE_DIVISOR = 26  # the authors' release reports PickScore / 26


class PickScore(ValueScorer):
    """logit_scale.exp() cos(text, picture), about 21 to 23 (paper, table 1); the release divides by 26."""

    name = "pickscore"
    also: ClassVar = {"pickscore_release": 1 / RELEASE_DIVISOR}

    def __init__(self, processor_folder: Path, model_folder: Path, device: torch.device):
        self.clip = TransformersClip(model_folder, processor=processor_folder)
        self._place(self.clip.network, device)

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[Score]:
        cosine = text_image_cosine(self.clip, samples, self.device)
        scale = self.network.logit_scale.double().exp().item()
        return [Score(scale * value) for value in cosine.tolist()]
