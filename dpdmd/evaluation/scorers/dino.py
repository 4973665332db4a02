"""Diversity by DINO features, v2 or v3: the pooled output, or the mean of the tokens if there is none."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dpdmd.evaluation.scorers.base import Check, FeatureScorer, Sample, normalise
from dpdmd.models.checks.transformers_parts import check_dino
from dpdmd.models.loading import load_strict


class DinoDiversity(FeatureScorer):
    """Pooled output of DINOv2 or DINOv3 (paper, 5.1: v3 ViT-L; in training v2-base)."""

    @classmethod
    def checks(cls, folder: Path) -> Sequence[Check]:
        return [lambda: check_dino(folder)]

    def __init__(self, folder: Path, device: torch.device):
        from transformers import AutoImageProcessor, AutoModel

        network = load_strict(AutoModel, folder)
        # DINOv3's processor has no PIL version; transformers then takes its only one.
        self.processor = AutoImageProcessor.from_pretrained(str(folder), local_files_only=True, backend="pil")
        self.set_network(network, device)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return images as the network takes them, [B, 3, H, W]."""
        return self.processor(images=list(images), return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def features(self, samples: Sequence[Sample]) -> Tensor:
        pixels = self.pixels([sample.image for sample in samples])
        out = self.network(pixel_values=self.to_network(pixels))
        pooled = getattr(out, "pooler_output", None)
        return normalise(out.last_hidden_state.mean(dim=1) if pooled is None else pooled)
