"""Configurations of SD3's other models, SDXL and Z-Image, and their folders without weights, as in sd35_medium.py."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, ZImageTransformer2DModel
from sd35_medium import CLIP_G, CLIP_L, VAE, save_hollow, save_hollow_parts
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, Qwen3Config, Qwen3Model

UNET = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
SDXL_VAE = {**VAE, "latent_channels": 4, "scaling_factor": 0.13025, "shift_factor": None}
ZIMAGE_TRANSFORMER = {
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
    "axes_dims": (32, 48, 48),
    "axes_lens": (1536, 512, 512),
}
ZIMAGE_VAE = {**VAE, "scaling_factor": 0.3611, "shift_factor": 0.1159}
QWEN3_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}


def save_hollow_sd35_large(folder: Path) -> None:
    """Write SD3.5-Large's folder without its weights."""
    width = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432}
    save_hollow(folder, **width, pos_embed_max_size=192, dual_attention_layers=())


def save_hollow_sd3_medium(folder: Path) -> None:
    """Write SD3-Medium's folder without its weights."""
    save_hollow(folder, pos_embed_max_size=192, qk_norm=None, dual_attention_layers=())


def save_hollow_sdxl(folder: Path) -> None:
    """Write SDXL's folder without its weights."""
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel(**UNET),
            "vae": AutoencoderKL(**SDXL_VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CLIP_L)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**CLIP_G, projection_dim=1280)),
        }
    scheduler = {
        "_class_name": "EulerDiscreteScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }
    save_hollow_parts(folder, "StableDiffusionXLPipeline", parts, {"unet": UNET, "vae": SDXL_VAE}, scheduler)


def save_hollow_zimage(folder: Path) -> None:
    """Write Z-Image's folder without its weights."""
    with torch.device("meta"):
        parts = {
            "transformer": ZImageTransformer2DModel(**ZIMAGE_TRANSFORMER),
            "vae": AutoencoderKL(**ZIMAGE_VAE),
            "text_encoder": Qwen3Model(Qwen3Config(**QWEN3_4B)),
        }
    settings = {"transformer": ZIMAGE_TRANSFORMER, "vae": ZIMAGE_VAE}
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 6.0}
    save_hollow_parts(folder, "ZImagePipeline", parts, settings, scheduler)
