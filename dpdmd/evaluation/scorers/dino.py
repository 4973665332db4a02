"""DINO features, v2 or v3: pooled output, or else the mean of the tokens."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dpdmd.evaluation.scorers.base import FeatureScorer, Sample, normalise
from dpdmd.models.loading import load_strict


class DinoDiversity(FeatureScorer):
    """Pooled output of DINOv2 or DINOv3 (paper, 5.1: v3 ViT-L; in training v2-base)."""

    name = "div_dino"

    def __init__(self, folder: Path, device: torch.device):
        from transformers import AutoImageProcessor, AutoModel

        network = load_strict(AutoModel, folder)
        # DINOv3's processor has no PIL twin; transformers then takes the one there is.
        self.processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, backend="pil")
        self._place(network, device)

    @torch.no_grad()
    def features(self, samples: Sequence[Sample]) -> Tensor:
        pixels = self.processor(images=[sample.image for sample in samples], return_tensors="pt")["pixel_values"]
        out = self.network(pixel_values=self._on_device(pixels))
        pooled = getattr(out, "pooler_output", None)
        return normalise(out.last_hidden_state.mean(dim=1) if pooled is None else pooled)
