"""SD3.5-Medium's configuration, and its folder without its weights: real headers over files that hold nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

TRANSFORMER = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}
VAE = {
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "sample_size": 1024,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
T5_XXL = {
    "d_model": 4096,
    "d_ff": 10240,
    "d_kv": 64,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}


def save_hollow(folder: Path, **other: Any) -> None:
    """Write the folder: what checks and plans read of it, in a few hundred kB of disk.

    `other` are other values of the transformer, as Stable Diffusion 3's other models have them.
    """
    transformer = TRANSFORMER | other
    with torch.device("meta"):
        parts = {
            "transformer": SD3Transformer2DModel(**transformer),
            "vae": AutoencoderKL(**VAE),
            "text_encoder": CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_L, projection_dim=768)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, projection_dim=1280)),
            "text_encoder_3": T5EncoderModel(T5Config(**T5_XXL)),
        }
    save_hollow_parts(
        folder,
        "StableDiffusion3Pipeline",
        parts,
        {"transformer": transformer, "vae": VAE},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    )


def save_hollow_parts(
    folder: Path,
    pipeline: str,
    parts: Mapping[str, nn.Module],
    settings: Mapping[str, Mapping[str, Any]],
    scheduler: Mapping[str, Any],
) -> None:
    """Write a pipeline folder without its weights.

    Args:
        pipeline: class in model_index.json.
        parts: component -> module, which may be on the meta device.
        settings: component -> its config.json; empty for other components.
        scheduler: the scheduler's file.
    """
    index: dict[str, Any] = {"_class_name": pipeline}
    for name, network in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(settings.get(name, {})))
        stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
        save_header(folder / name / f"{stem}.safetensors", network)
        index[name] = ["library", type(network).__name__]
    for name in [part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text")]:
        (folder / name).mkdir()
        (folder / name / "tokenizer.json").write_text("{}")
        (folder / name / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))
        index[name] = ["transformers", "Tokenizer"]
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    (folder / "model_index.json").write_text(json.dumps(index))


def save_header(path: Path, network: nn.Module) -> None:
    """A .safetensors file of the network's weights in bf16 whose data is a hole in the file."""
    header, end = {}, 0
    for name, value in network.state_dict().items():
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [end, end + 2 * value.numel()]}
        end += 2 * value.numel()
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
