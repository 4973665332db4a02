"""Build the small world's scorers in the official layouts, with random weights, tokenizers and processors."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertTokenizer,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    Dinov2Config,
    Dinov2Model,
)

from dpdmd.evaluation.scorers import imagereward
from dpdmd.shapes import world
from dpdmd.shapes.text import CHARACTERS, MAX_LENGTH, build_clip_tokenizer, words_of
from dpdmd.shapes.world import IMAGE_SIZE
from dpdmd.utils.atomic_files import write_json

WIDTH, PATCH, DEPTH = 64, 8, 4  # of every image encoder; 64 tokens and a class token
TEXT_WIDTH, TEXT_DEPTH = 64, 2


def build_clip() -> tuple[CLIPModel, CLIPProcessor]:
    """Build a CLIP for 64 x 64 images with random weights, and its processor."""
    tokenizer = build_clip_tokenizer("<|endoftext|>", world)
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 4 * TEXT_WIDTH,
            "num_hidden_layers": TEXT_DEPTH,
            "num_attention_heads": 2,
            "max_position_embeddings": MAX_LENGTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": WIDTH // 64,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
        },
        projection_dim=64,
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    image_processor = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)
    return CLIPModel(config), CLIPProcessor(image_processor, tokenizer)


def build_dinov2() -> tuple[Dinov2Model, BitImageProcessor]:
    """Build a DINOv2 for 64 x 64 images with random weights, and its processor."""
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=WIDTH // 64,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return Dinov2Model(config), BitImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=size)


def build_bert_tokenizer() -> BertTokenizer:
    """Build a BERT tokenizer with one token per word of the world; other words are split into characters."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = dict.fromkeys([*specials, *words_of(world), *CHARACTERS, *("##" + character for character in CHARACTERS)])
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=512)


def build_imagereward() -> tuple[imagereward.ImageRewardNetwork, dict[str, Any], BertTokenizer]:
    """Build an ImageReward for 64 x 64 images with random weights, its med_config and its tokenizer."""
    tokenizer = build_bert_tokenizer()
    med_config = {
        "architectures": ["BertModel"],
        "hidden_act": "gelu",
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": imagereward.NUM_TEXT_TOKENS,
        "model_type": "bert",
        "num_attention_heads": 2,
        "num_hidden_layers": TEXT_DEPTH,
        "encoder_width": WIDTH,
        "vocab_size": len(tokenizer),
        "add_cross_attention": True,
    }
    sizes = imagereward.Sizes(
        vision_width=WIDTH,
        vision_mlp=4 * WIDTH,
        vision_depth=DEPTH,
        image_size=IMAGE_SIZE,
        patch=PATCH,
        text_width=TEXT_WIDTH,
        text_mlp=4 * TEXT_WIDTH,
        text_depth=TEXT_DEPTH,
        vocabulary=len(tokenizer),
        positions=imagereward.NUM_TEXT_TOKENS,
        head={0: (TEXT_WIDTH, 64), 2: (64, 32), 4: (32, 16), 6: (16, 8), 7: (8, 1)},
    )
    return imagereward.ImageRewardNetwork(sizes, med_config), med_config, tokenizer


def save_model(folder: Path, model: nn.Module, processor: CLIPProcessor | BitImageProcessor) -> None:
    """Write a transformers folder."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def save_imagereward(
    folder: Path, network: imagereward.ImageRewardNetwork, med_config: dict[str, Any], tokenizer: BertTokenizer
) -> None:
    """Write ImageReward.pt with the official keys, med_config.json, and the tokenizer."""
    folder.mkdir(parents=True)
    torch.save(imagereward.to_official(network.state_dict()), folder / "ImageReward.pt")
    write_json(folder / "med_config.json", med_config)
    tokenizer.save_pretrained(folder)
