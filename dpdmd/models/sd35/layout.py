"""Folder layout, shapes and noise schedule of SD3.5."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpdmd.models.activation_memory import sd3_call_memory
from dpdmd.models.layout import Layout
from dpdmd.models.noise_schedule import FlowSchedule
from dpdmd.models.sampling_defaults import SamplingDefaults, read_sampling_defaults
from dpdmd.models.scheduler_config import read_scheduler_config


def _sd3_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch = config["patch_size"]
    return {
        "pos_embed.proj.weight": (width, config["in_channels"], patch, patch),
        "context_embedder.weight": (config["caption_projection_dim"], config["joint_attention_dim"]),
        "time_text_embed.text_embedder.linear_1.weight": (width, config["pooled_projection_dim"]),
        "proj_out.weight": (patch * patch * (config["out_channels"] or config["in_channels"]), width),
    }


def _sd3_latents(config: Mapping[str, Any]) -> tuple[int, float]:
    patch = int(config.get("patch_size", 2))
    return patch, patch * int(config.get("pos_embed_max_size", 96))


_FLOW_OPTIONS = (  # bend the grid
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "invert_sigmas",
    "stochastic_sampling",
    "shift_terminal",
)


def read_flow_schedule(folder: Path) -> FlowSchedule:
    """Of a FlowMatchEulerDiscreteScheduler whose grid nothing but its shift bends, unless dpdmd.json has one.

    Raises:
        ValueError: another scheduler class, or an option that we do not reproduce.
    """
    path, config = read_scheduler_config(folder, "FlowMatchEulerDiscreteScheduler")
    bent = [name for name in _FLOW_OPTIONS if config.get(name)]
    if bent or config.get("num_train_timesteps", 1000) != 1000:
        raise ValueError(f"{path} sets {', '.join(bent) or 'num_train_timesteps'}, which this family does not use")
    shift = read_sampling_defaults(folder, SamplingDefaults()).shift or config.get("shift", 1.0)
    if not (isinstance(shift, int | float) and math.isfinite(shift) and shift > 0):
        raise ValueError(f"{path} sets shift {shift!r}, which must be a number above 0")
    return FlowSchedule(float(shift))


SD35 = Layout(
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
    shapes=_sd3_shapes,
    blocks=("transformer_blocks.", lambda config: config["num_layers"]),
    latents=_sd3_latents,
    needed=("vae", "scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    schedule=read_flow_schedule,
    defaults=SamplingDefaults(),
    lora_targets=(
        *("to_q", "to_k", "to_v", "to_out.0"),  # of the images, and of attn2
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of the text
        *("net.0.proj", "net.2"),  # feed-forward, both
    ),
    t5=("text_encoder_3", "tokenizer_3"),
    fixed=("pos_embed.pos_embed",),
    call_memory=sd3_call_memory,
)
