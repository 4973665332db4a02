"""ImageReward on transformers' BLIP classes: the rewards of the `image-reward` package without its old dependencies.

The files are the official ones: ImageReward.pt, med_config.json and a folder of the bert-base-uncased tokenizer.
`benchmarks/imagereward_parity.sh` measures the difference from the package.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dpdmd.evaluation.scorers.base import Check, Sample, Score, ValueScorer
from dpdmd.models.checks.transformers_parts import check_prompt_tokenizer
from dpdmd.models.loading import raise_as_value_error
from dpdmd.models.network_files import read_checkpoint
from dpdmd.utils.error_lines import shorten_error
from dpdmd.utils.text_files import read_json

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the package's training rewards
NUM_TEXT_TOKENS = 35
NUM_ADDED_TOKENS = 2  # BLIP's own, which are not in the released tokenizer
HEAD_SIZE = 64  # of every ViT of BLIP; the number of heads cannot be read from the tensors
VISION_EPS = 1e-6  # BLIP's own; transformers' default is 1e-5
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

# Official key, and our key, which is that of transformers; {n} is a layer's number.
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
# Weights that no forward pass reads; only these are left out.
_UNREAD = re.compile(r"blip\.(vision_proj|text_proj)\..*|.*\.position_ids")


def _translate(key: str, names: Iterable[tuple[str, str]]) -> str:
    for template, other in names:
        pattern = re.escape(template).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\{rest\}", "(?P<rest>.*)")
        if match := re.fullmatch(pattern, key):
            return other.format(**match.groupdict())
    raise ValueError(f"unknown weight {key}")


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return official weights under our names, in fp32.

    Raises:
        ValueError: a key that is not ImageReward's.
    """
    return {_translate(key, _NAMES): value.float() for key, value in state.items() if not _UNREAD.fullmatch(key)}


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under their official names; the inverse of `from_official`, except for unread weights."""
    return {_translate(key, [(ours, theirs) for theirs, ours in _NAMES]): value for key, value in state.items()}


@dataclass(frozen=True)
class Sizes:
    """Sizes of an ImageReward network.

    Attributes:
        vision_width, vision_mlp, vision_depth, image_size, patch: of the image encoder.
        text_width, text_mlp, text_depth, vocabulary, positions: of the text encoder.
        head: index of each linear layer in the official head, which also has dropouts -> (inputs, outputs).
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
        """Read the sizes from weights under our names."""
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
    """Return the number of layers; the keys number them from 0."""
    return 1 + max(int(match[1]) for match in (re.fullmatch(pattern, key) for key in state) if match)


class ImageRewardNetwork(nn.Module):
    """BLIP's image encoder, its text encoder with cross attention to the image, and a linear head on token 0.

    Args:
        med_config: the text encoder's configuration as released, for what cannot be read from the weights.
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
        with raise_as_value_error("its med_config.json does not describe a text encoder"):
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
        # Linear layers without activations; the missing indices are dropouts.
        self.head = nn.ModuleDict({str(index): nn.Linear(*sizes.head[index]) for index in sorted(sizes.head)})

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return standardised rewards [B] of pixels [B, 3, H, W] and tokens, mask [B, 35]."""
        return self.rewards(self.encode_images(pixels), tokens, mask)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Return image tokens [B, 1 + patches, width]."""
        return self.vision(pixel_values=pixels).last_hidden_state

    def rewards(self, images: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return standardised rewards [B] of prompts with encoded images."""
        # Without is_decoder in the call the text is not causal, as the package reads it.
        out = self.text(
            input_ids=tokens,
            attention_mask=mask,
            encoder_hidden_states=images,
            encoder_attention_mask=torch.ones(images.shape[:2], dtype=torch.long, device=images.device),
        ).last_hidden_state[:, 0]
        for layer in self.head.values():
            out = layer(out)
        return (out.squeeze(-1) - MEAN) / STD


def load_network(model_path: Path, med_config: Path) -> ImageRewardNetwork:
    """Load the network of the official files.

    Raises:
        ValueError: the weights are not ImageReward's, or do not fit each other or the configuration.
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

    @classmethod
    def checks(cls, model_path: Path, med_config: Path, tokenizer: Path) -> Sequence[Check | None]:
        return [
            lambda: _check_network(model_path, med_config),
            None,
            lambda: _check_tokenizer(model_path, tokenizer),
        ]

    def __init__(self, model_path: Path, med_config: Path, tokenizer: Path, device: torch.device):
        from transformers import BertTokenizer

        network = load_network(model_path, med_config)
        self.tokenizer = BertTokenizer.from_pretrained(str(tokenizer), local_files_only=True)
        self.transform = image_transform(network.image_size)
        self.set_network(network, device)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return images as the network takes them, [B, 3, H, W]."""
        return torch.stack([self.transform(image) for image in images])

    @torch.no_grad()
    def score(self, samples: Sequence[Sample]) -> list[Score]:
        text = self.tokenizer(
            [sample.prompt for sample in samples],
            padding="max_length",
            truncation=True,
            max_length=NUM_TEXT_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        pixels = self.to_network(self.pixels([sample.image for sample in samples]))
        return [Score(value) for value in self.network(pixels, text.input_ids, text.attention_mask).tolist()]


def image_transform(size: int) -> Callable[[Image.Image], Tensor]:
    """Build the package's own transform: short side to `size`, centre crop, and only then RGB.

    BLIP's processor resizes to a square. CLIP's processor rounds the corner of the crop down, torchvision to even.
    """
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(size, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            lambda image: image.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )


def _check_network(model_path: Path, med_config: Path) -> None:
    with torch.device("meta"):
        load_network(model_path, med_config)


def _check_tokenizer(model_path: Path, folder: Path) -> None:
    vocabulary = len(read_checkpoint(model_path)["blip.text_encoder.embeddings.word_embeddings.weight"])
    tokenizer = check_prompt_tokenizer("BertTokenizer", folder, NUM_TEXT_TOKENS, vocabulary)
    tokens = max(tokenizer.get_vocab().values()) + 1
    if tokens < vocabulary - NUM_ADDED_TOKENS:
        raise ValueError(f"{folder}: its tokenizer has {tokens} tokens, but the network {vocabulary}: another model's?")
