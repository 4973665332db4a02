"""CLIP as two scorers: diversity by image features, and the agreement of image and prompt.

A folder has transformers' layout, or OpenCLIP's (open_clip_config.json and the weights beside it).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from dpdmd.evaluation.scorer_files import is_open_clip
from dpdmd.evaluation.scorers.base import Check, FeatureScorer, Sample, Score, ValueScorer, normalise
from dpdmd.models.checks.transformers_parts import check_image_processor, check_network, check_prompt_tokenizer
from dpdmd.models.loading import load_strict, raise_as_value_error


class Clip(Protocol):
    """A CLIP of either library. `pixels` and `tokens` run on the CPU, the others on the network's device.

    Pixels are [B, 3, H, W], tokens [B, L], features [B, D].
    """

    network: nn.Module

    def pixels(self, images: Sequence[Image.Image]) -> Tensor: ...
    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]: ...
    def class_token(self, pixels: Tensor) -> Tensor: ...
    def image_features(self, pixels: Tensor) -> Tensor: ...
    def text_features(self, tokens: dict[str, Tensor]) -> Tensor: ...


class TransformersClip:
    """A CLIP in transformers' layout.

    Pillow resizes the images, as when CLIP and PickScore were trained. transformers 5 would take torchvision's resize.

    Args:
        vision_only: load the image encoder only.
        processor: folder of the image processor and the tokenizer, if they are not in `folder`.
    """

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
        # All of one length, so that a prompt's score does not depend on the other prompts of the batch.
        return dict(
            self.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        )

    def class_token(self, pixels: Tensor) -> Tensor:
        return self.network(pixel_values=pixels).last_hidden_state[:, 0]

    def image_features(self, pixels: Tensor) -> Tensor:
        return self.network.get_image_features(pixel_values=pixels).pooler_output

    def text_features(self, tokens: dict[str, Tensor]) -> Tensor:
        return self.network.get_text_features(**tokens).pooler_output


class OpenClip:
    """A CLIP in OpenCLIP's layout.

    Raises:
        ValueError: its weights do not fit, or the library cannot read the folder.
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        import open_clip

        name = f"local-dir:{folder.absolute()}"
        with raise_as_value_error(f"{folder} does not load as an OpenCLIP model"):
            # open_clip loads strictly, and pickled weights with weights_only.
            self.network, self.transform = open_clip.create_model_from_pretrained(name, device=device)
            self.tokenizer = open_clip.get_tokenizer(name)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        return torch.stack([self.transform(image) for image in images])

    def tokens(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        return {"text": self.tokenizer(list(prompts))}

    def class_token(self, pixels: Tensor) -> Tensor:
        # The class token of the last block before the final norm, as transformers' last_hidden_state has it.
        outputs = self.network.visual.forward_intermediates(
            pixels, indices=1, intermediates_only=True, normalize_intermediates=False, output_extra_tokens=True
        )
        return outputs["image_intermediates_prefix"][-1][:, 0]

    def image_features(self, pixels: Tensor) -> Tensor:
        return self.network.encode_image(pixels)

    def text_features(self, tokens: dict[str, Tensor]) -> Tensor:
        return self.network.encode_text(**tokens)


def load_clip(folder: Path, *, vision_only: bool = False) -> Clip:
    """Load the CLIP of a folder.

    Raises:
        ValueError: its weights do not fit.
    """
    return OpenClip(folder) if is_open_clip(folder) else TransformersClip(folder, vision_only=vision_only)


class ClipDiversity(FeatureScorer):
    """Class token of the last hidden state, before the final norm, as in the authors' release (paper, 5.1)."""

    @classmethod
    def checks(cls, folder: Path) -> Sequence[Check]:
        return [lambda: check_image_encoder(folder)]

    def __init__(self, folder: Path, device: torch.device):
        self.clip = load_clip(folder, vision_only=True)
        self.set_network(self.clip.network, device)

    @torch.no_grad()
    def features(self, samples: Sequence[Sample]) -> Tensor:
        pixels = self.clip.pixels([sample.image for sample in samples])
        return normalise(self.clip.class_token(self.to_network(pixels)))


class AgreementScorer(ValueScorer):
    """Agreement of image and prompt: `factor` times cos(text, image) of a CLIP's projected features."""

    clip: Clip
    factor: float

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[Score]:
        pixels = self.to_network(self.clip.pixels([sample.image for sample in samples]))
        tokens = self.clip.tokens([sample.prompt for sample in samples])
        texts = self.clip.text_features({name: value.to(self.device) for name, value in tokens.items()})
        cosine = (normalise(self.clip.image_features(pixels)) * normalise(texts)).sum(-1)
        return [Score(self.factor * value) for value in cosine.tolist()]


class ClipScore(AgreementScorer):
    """100 cos(text, image)."""

    factor = 100.0

    @classmethod
    def checks(cls, folder: Path) -> Sequence[Check]:
        return [lambda: check_clip(folder, folder)]

    def __init__(self, folder: Path, device: torch.device):
        self.clip = load_clip(folder)
        self.set_network(self.clip.network, device)


def check_image_encoder(folder: Path) -> None:
    """Check that the image encoder of a CLIP and its processor will load, and fit each other.

    Raises:
        ValueError: they will not, or the encoder has no class token.
    """
    if is_open_clip(folder):
        clip = _check_open_clip(folder)
        pixels = clip.pixels([Image.new("RGB", (96, 64))]).to("meta")
        with raise_as_value_error(f"{folder}: its image encoder has no class token to compare; give a CLIP with a ViT"):
            clip.class_token(pixels)
    else:
        _check_image_size(folder, check_network("CLIPVisionModel", folder))


def check_clip(folder: Path, processor: Path) -> None:
    """Check that a CLIP, and the image processor and tokenizer of the folder `processor`, load and fit each other.

    Raises:
        ValueError: they do not.
    """
    if is_open_clip(folder):
        _check_open_clip(folder)
        return
    config = check_network("CLIPModel", folder)
    _check_image_size(processor, config.vision_config)
    text = config.text_config
    check_prompt_tokenizer("AutoTokenizer", processor, text.max_position_embeddings, text.vocab_size)


def _check_open_clip(folder: Path) -> OpenClip:
    """Load the folder into a network without numbers, which compares names and shapes."""
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # about numbers that are not copied
        return OpenClip(folder, "meta")


def _check_image_size(processor: Path, config: Any) -> None:
    """A CLIP has position embeddings for one image size only."""
    height, width = check_image_processor(processor)
    if (height, width) != (config.image_size, config.image_size):
        raise ValueError(
            f"{processor}: its processor makes images of {height} x {width} pixels, but the network takes "
            f"{config.image_size} x {config.image_size}: another model's?"
        )
