"""ImageReward on transformers' BLIP classes: the `image-reward` package's numbers without its pinned environment.

Reads the official files: ImageReward.pt, med_config.json and a bert-base-uncased tokenizer folder. Parity with the
package is measured by `benchmarks/imagereward_parity.sh`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dpdmd.evaluation.scorers.base import Sample, Score, ValueScorer
from dpdmd.models.weight_files import read_checkpoint
from dpdmd.utils.text_files import read_json, shorten_error

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the package's training rewards
NUM_TEXT_TOKENS = 35
HEAD_SIZE = 64  # of every ViT of BLIP; the number of heads cannot be read off the tensors
VISION_EPS = 1e-6  # BLIP's own; transformers' default is 1e-5
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# Official key, our key; {n} is a layer's number. Ours are transformers' own names.
_NAMES = (
    ("blip.visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.{rest}", "vision.embeddings.patch_embedding.{rest}"),
    ("blip.visual_encoder.norm.{rest}", "vision.post_layernorm.{rest}"),
    ("blip.visual_encoder.blocks.{n}.norm1.{rest}", "vision.encoder.layers.{n}.layer_norm1.{rest}"),
    ("blip.visual_encoder.blocks.{n}.norm2.{rest}", "vision.encoder.layers.{n}.layer_norm2.{rest}"),
    ("blip.visual_encoder.blocks.{n}.attn.qkv.{rest}", "vision.encoder.layers.{n}.self_attn.qkv.{rest}"),
    ("blip.visual_encoder.blocks.{n}.attn.proj.{rest}", "vision.encoder.layers.{n}.self_attn.projection.{rest}"),
    ("blip.visual_encoder.blocks.{n}.mlp.{rest}", "vision.encoder.layers.{n}.mlp.{rest}"),
    ("blip.text_encoder.{rest}", "text.{rest}"),
    ("mlp.layers.{rest}", "head.{rest}"),
)
# What no forward pass reads, and nothing else, is left out.
_UNREAD = re.compile(r"blip\.(vision_proj|text_proj)\..*|.*\.position_ids")


def _translate(key: str, names: Iterable[tuple[str, str]]) -> str:
    for template, other in names:
        pattern = re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{rest\}", "(?P<rest>.*)")
        if match := re.fullmatch(pattern, key):
            return other.format(**match.groupdict())
    raise ValueError(f"unknown weight {key}")


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, fp32.

    Raises:
        ValueError: a key that is not ImageReward's.
    """
    return {_translate(key, _NAMES): value.float() for key, value in state.items() if not _UNREAD.fullmatch(key)}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `from_official`, but for the weights that no forward pass reads."""
    return {_translate(key, [(ours, theirs) for theirs, ours in _NAMES]): value for key, value in state.items()}


@dataclass(frozen=True)
class Sizes:
    """Sizes of an ImageReward; the official one's are in `from_state` of its weights.

    Attributes:
        vision_width, vision_mlp, vision_depth, image_size, patch: of the image's encoder.
        text_width, text_mlp, text_depth, vocabulary, positions: of the text's encoder.
        head: place of each linear layer among the dropouts -> (inputs, outputs).
    """

    vision_width: int
    vision_mlp: int
    vision_depth: int
    image_size: int
    patch: int
    text_width: int
    text_mlp: int
    text_depth: int
    vocabulary: int
    positions: int
    head: dict[int, tuple[int, int]]

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> "Sizes":
        """Read off the weights, under our names."""
        vision_width, _, _, patch = state["vision.embeddings.patch_embedding.weight"].shape
        vocabulary, text_width = state["text.embeddings.word_embeddings.weight"].shape
        linear = {key: value for key, value in state.items() if re.fullmatch(r"head\.\d+\.weight", key)}
        return cls(
            vision_width=vision_width,
            vision_mlp=state["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
            vision_depth=_count(state, r"vision\.encoder\.layers\.(\d+)\..*"),
            image_size=patch * round((state["vision.embeddings.position_embedding"].shape[1] - 1) ** 0.5),
            patch=patch,
            text_width=text_width,
            text_mlp=state["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
            text_depth=_count(state, r"text\.encoder\.layer\.(\d+)\..*"),
            vocabulary=vocabulary,
            positions=state["text.embeddings.position_embeddings.weight"].shape[0],
            head={int(key.split(".")[1]): tuple(reversed(value.shape)) for key, value in linear.items()},
        )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Number of layers that the keys number from 0."""
    return 1 + max(int(match[1]) for match in (re.fullmatch(pattern, key) for key in state) if match)


class ImageRewardNetwork(nn.Module):
    """BLIP's image encoder, its text encoder looking at the image, and a linear head on token 0.

    Args:
        med_config: the text encoder's configuration as released, for what the weights do not tell.
    """

    def __init__(self, sizes: Sizes, med_config: Mapping[str, Any]):
        super().__init__()
        from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        vision = BlipVisionConfig(
            hidden_size=sizes.vision_width,
            intermediate_size=sizes.vision_mlp,
            num_hidden_layers=sizes.vision_depth,
            num_attention_heads=max(1, sizes.vision_width // HEAD_SIZE),
            image_size=sizes.image_size,
            patch_size=sizes.patch,
            hidden_act="gelu",
            layer_norm_eps=VISION_EPS,
        )
        text = BlipTextConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.text_width,
            encoder_hidden_size=sizes.vision_width,
            intermediate_size=sizes.text_mlp,
            num_hidden_layers=sizes.text_depth,
            num_attention_heads=med_config["num_attention_heads"],
            max_position_embeddings=sizes.positions,
            hidden_act=med_config.get("hidden_act", "gelu"),
            layer_norm_eps=med_config.get("layer_norm_eps", 1e-12),
            is_decoder=True,  # builds the cross attention
        )
        self.image_size = sizes.image_size
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        # Linear layers without activations; the numbers between theirs are dropouts.
        self.head = nn.ModuleDict({str(index): nn.Linear(*sizes.head[index]) for index in sorted(sizes.head)})

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Standardised rewards [B] of pixels [B, 3, H, W] and tokens, mask [B, 35]."""
        return self.read(self.see(pixels), tokens, mask)

    def see(self, pixels: Tensor) -> Tensor:
        """All of an image's tokens, [B, 1 + patches, width]."""
        return self.vision(pixel_values=pixels).last_hidden_state

    def read(self, seen: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Standardised rewards [B] of texts that look at images already seen."""
        # Without is_decoder in the call the text is not causal, as the package reads it.
        out = self.text(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        ).last_hidden_state[:, 0]
        for layer in self.head.values():
            out = layer(out)
        return (out.squeeze(-1) - MEAN) / STD


def load_network(model_path: Path, med_config: Path) -> ImageRewardNetwork:
    """The network of the official files.

    Raises:
        ValueError: weights that are not ImageReward's, or do not fit each other or the configuration.
    """
    state, config = from_official(read_checkpoint(model_path)), read_json(med_config)
    if "num_attention_heads" not in config:
        raise ValueError(f"{med_config} lacks 'num_attention_heads'")
    try:
        sizes = Sizes.from_state(state)
        if not sizes.head:
            raise KeyError("mlp.layers: its head is missing")
        network = ImageRewardNetwork(sizes, config)
        network.load_state_dict(state, strict=True, assign=True)
    except (KeyError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{model_path} is no whole ImageReward ({shorten_error(error)})") from None
    return network


class ImageReward(ValueScorer):
    """ImageReward, standardised: the mean over its training set is 0 (paper, table 1: about 1)."""

    name = "imagereward"

    def __init__(self, model_path: Path, med_config: Path, tokenizer: Path, device: torch.device):
        from transformers import BertTokenizer
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        network = load_network(model_path, med_config)
        self.tokenizer = BertTokenizer.from_pretrained(str(tokenizer), local_files_only=True)
        size = network.image_size
        # BLIP squashes to a square; ImageReward crops: short side, then centre.
        self.processor = CLIPImageProcessorPil(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_mean=CLIP_MEAN,
            image_std=CLIP_STD,
        )
        self._place(network, device)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Pictures as the network wants them, [B, 3, H, W]."""
        return self.processor(images=list(images), return_tensors="pt")["pixel_values"]

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[Score]:
        text = self.tokenizer(
            [sample.prompt for sample in samples],
            padding="max_length",
            truncation=True,
            max_length=NUM_TEXT_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        pixels = self._on_device(self.pixels([sample.image for sample in samples]))
        return [Score(value) for value in self.network(pixels, text.input_ids, text.attention_mask).tolist()]
