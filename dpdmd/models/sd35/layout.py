"""Folder layout, shapes and noise schedule of Stable Diffusion 3.5."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpdmd.config.variants import SD3_MEDIUM, SD35_LARGE
from dpdmd.models.comfyui_workflow import ComfyUINames
from dpdmd.models.flow_scheduler import read_shift
from dpdmd.models.layout import Layout
from dpdmd.models.noise_schedule import FlowSchedule
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.sd35.activation_memory import call_memory
from dpdmd.models.sd35.official import OFFICIAL, OTHERS
from dpdmd.models.weight_files import Shape


def _shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch = config["patch_size"]
    return {
        "pos_embed.proj.weight": (width, config["in_channels"], patch, patch),
        "context_embedder.weight": (config["caption_projection_dim"], config["joint_attention_dim"]),
        "time_text_embed.text_embedder.linear_1.weight": (width, config["pooled_projection_dim"]),
        "proj_out.weight": (patch * patch * (config["out_channels"] or config["in_channels"]), width),
    }


def _latents(config: Mapping[str, Any]) -> tuple[int, float]:
    patch = int(config.get("patch_size", 2))
    return patch, patch * int(config.get("pos_embed_max_size", 96))


def _encoder_widths(encoders: Mapping[str, Any]) -> tuple[int | None, int]:
    """Return the widths of the context, which are zeros of any width without a T5, and of both pooled vectors."""
    t5 = encoders.get("text_encoder_3")
    return t5 and t5.d_model, encoders["text_encoder"].projection_dim + encoders["text_encoder_2"].projection_dim


def read_schedule(folder: Path) -> FlowSchedule:
    """Return the schedule of a FlowMatchEulerDiscreteScheduler with one shift, which spaces the times itself.

    Raises:
        ValueError: the scheduler is of another class, or sets an option that this schedule does not reproduce.
    """
    return FlowSchedule(read_shift(folder))


LAYOUT = Layout(
    pipeline="StableDiffusion3Pipeline",
    network="transformer",
    classes={
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModelWithProjection",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "text_encoder_3": "T5EncoderModel",
    },
    repository="stabilityai/stable-diffusion-3.5-medium",
    licence={
        "license": "other",
        "license_name": "stabilityai-ai-community",
        "license_link": "https://huggingface.co/stabilityai/stable-diffusion-3.5-medium/blob/main/LICENSE.md",
    },
    official=OFFICIAL,
    other_official=OTHERS,
    shapes=_shapes,
    blocks=lambda config: {"transformer_blocks.": config["num_layers"]},
    latents=_latents,
    required=("vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    read_schedule=read_schedule,
    defaults=SamplingDefaults(),
    lora_targets=(
        *("to_q", "to_k", "to_v", "to_out.0"),  # of the images, and of attn2
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of the text
        *("net.0.proj", "net.2"),  # feed-forward, both
    ),
    text_widths=lambda config: (config["joint_attention_dim"], config["pooled_projection_dim"]),
    encoder_widths=_encoder_widths,
    t5=("text_encoder_3", "tokenizer_3"),
    buffers=("pos_embed.pos_embed",),
    call_memory=call_memory,
    comfyui=ComfyUINames(
        checkpoint="sd3.5_medium.safetensors",
        other_checkpoints={SD35_LARGE: "sd3.5_large.safetensors", SD3_MEDIUM: "sd3_medium.safetensors"},
        text_encoders=("clip_l.safetensors", "clip_g.safetensors", "t5xxl_fp16.safetensors"),
        latent="EmptySD3LatentImage",
        pads_t5=True,
    ),
)
