"""CLIP in two roles: features of the image for diversity, and agreement of image and prompt.

Reads a transformers folder, or an OpenCLIP folder (open_clip_config.json and the weights beside it).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from dpdmd.evaluation.scorer_files import is_open_clip
from dpdmd.evaluation.scorers.base import FeatureScorer, Sample, Score, ValueScorer, normalise
from dpdmd.models.loading import load_strict


class _Clip(Protocol):
    """One CLIP, whichever library it comes from. All on the network's device; images [B, ...], texts [B, L]."""

    network: nn.Module

    def pixels(self, images: Sequence[Image.Image]) -> Tensor: ...
    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]: ...
    def class_token(self, pixels: Tensor) -> Tensor: ...
    def image_features(self, pixels: Tensor) -> Tensor: ...
    def text_features(self, tokens: dict[str, Tensor]) -> Tensor: ...


class TransformersClip:
    """`vision_only`: of a whole CLIP only the image's half is loaded; `processor`: folder of another's processor."""

    def __init__(self, folder: Path, *, vision_only: bool = False, processor: Path | None = None):
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPVisionModel

        self.network = load_strict(CLIPVisionModel if vision_only else CLIPModel, folder)
        source = str(processor or folder)
        self.processor = AutoImageProcessor.from_pretrained(source, local_files_only=True, backend="pil")
        self.tokenizer = None if vision_only else AutoTokenizer.from_pretrained(source, local_files_only=True)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        return self.processor(images=list(images), return_tensors="pt")["pixel_values"]

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        length = self.network.config.text_config.max_position_embeddings
        # All of one length, so that a prompt's score does not depend on who else is in its batch.
        return dict(
            self.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        )

    def class_token(self, pixels: Tensor) -> Tensor:
        return self.network(pixel_values=pixels).last_hidden_state[:, 0]

    def image_features(self, pixels: Tensor) -> Tensor:
        return self.network.get_image_features(pixel_values=pixels).pooler_output

    def text_features(self, tokens: dict[str, Tensor]) -> Tensor:
        return self.network.get_text_features(**tokens).pooler_output


class _OpenClip:
    def __init__(self, folder: Path):
        import open_clip

        name = f"local-dir:{folder.absolute()}"
        # open_clip loads strictly, and pickled weights with weights_only.
        self.network, _, self.transform = open_clip.create_model_and_transforms(name)
        self.tokenizer = open_clip.get_tokenizer(name)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.stack([self.transform(image) for image in images])

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"text": self.tokenizer(list(prompts))}

    def class_token(self, pixels: Tensor) -> Tensor:
        # The class token of the last block before the final norm, as transformers' last_hidden_state has it.
        found = self.network.visual.forward_intermediates(
            pixels, indices=1, intermediates_only=True, normalize_intermediates=False, output_extra_tokens=True
        )
        return found["image_intermediates_prefix"][-1][:, 0]

    def image_features(self, pixels: Tensor) -> Tensor:
        return self.network.encode_image(pixels)

    def text_features(self, tokens: dict[str, Tensor]) -> Tensor:
        return self.network.encode_text(**tokens)


def load_clip(folder: Path, *, vision_only: bool = False) -> _Clip:
    """The CLIP of a folder.

    Raises:
        ValueError: its weights do not fit.
    """
    return _OpenClip(folder) if is_open_clip(folder) else TransformersClip(folder, vision_only=vision_only)


class ClipDiversity(FeatureScorer):
    """Class token of the last hidden state, before the final norm: what the authors' release compares (paper, 5.1)."""

    name = "div_clip"

    def __init__(self, folder: Path, device: torch.device):
        self.clip = load_clip(folder, vision_only=True)
        self._place(self.clip.network, device)

    @torch.no_grad()
    def features(self, samples: Sequence[Sample]) -> Tensor:
        pixels = self.clip.pixels([sample.image for sample in samples])
        return normalise(self.clip.class_token(self._on_device(pixels)))


class AgreementScorer(ValueScorer):
    """A CLIP's agreement of image and prompt: a factor times cos(text, image) of the projected features."""

    clip: _Clip
    factor: float

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[Score]:
        pixels = self._on_device(self.clip.pixels([sample.image for sample in samples]))
        tokens = self.clip.tokens([sample.prompt for sample in samples])
        texts = self.clip.text_features({name: value.to(self.device) for name, value in tokens.items()})
        cosine = (normalise(self.clip.image_features(pixels)) * normalise(texts)).sum(-1)
        return [Score(self.factor * value) for value in cosine.tolist()]


class ClipScore(AgreementScorer):
    """100 cos(text, image); higher: the image agrees more with its prompt."""

    name = "clip_score"
    factor = 100.0

    def __init__(self, folder: Path, device: torch.device):
        self.clip = load_clip(folder)
        self._place(self.clip.network, device)
