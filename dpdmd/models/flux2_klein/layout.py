"""Folder layout, shapes and noise schedule of FLUX.2-klein."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpdmd.models.activation_memory import decode_bytes
from dpdmd.models.counted_memory import count_calls_of
from dpdmd.models.even_flow_schedule import EvenFlowSchedule
from dpdmd.models.flow_scheduler import read_flow_scheduler
from dpdmd.models.flux2_klein.official import OFFICIAL, OTHERS
from dpdmd.models.layout import Layout
from dpdmd.models.layout_values import Autoencoder
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.weight_files import Shape

PATCH = 2  # latents of the autoencoder a side of one latent of the sampler, which is one token
FACTOR = 16  # pixels a side of one latent of the sampler
HIDDEN_STATES = (9, 18, 27)  # of the text encoder, beside each other in one token


def _shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    channels, inner = config["in_channels"], int(width * config["mlp_ratio"])
    return {
        "x_embedder.weight": (width, channels),
        "context_embedder.weight": (width, config["joint_attention_dim"]),
        "transformer_blocks.0.ff.linear_in.weight": (2 * inner, width),
        "single_transformer_blocks.0.attn.to_out.weight": (width, width + inner),
        "proj_out.weight": (channels, width),
    }


def _blocks(config: Mapping[str, Any]) -> dict[str, int]:
    return {"transformer_blocks.": config["num_layers"], "single_transformer_blocks.": config["num_single_layers"]}


def shift_of(pixels: int, steps: int) -> float:
    """Return the shift e^mu of the pipeline's grid of `steps` for an image of so many pixels.

    mu is linear in the image's tokens at 10 and at 200 steps, and between them in the steps. Above 4300 tokens it is
    that of 200 steps.
    """
    tokens = pixels / FACTOR**2
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return math.exp(at_200)
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    return math.exp(at_200 + (at_200 - at_10) / 190 * (steps - 200))


def read_schedule(folder: Path) -> EvenFlowSchedule:
    """Return the schedule of a FlowMatchEulerDiscreteScheduler whose shift the pipeline computes (`shift_of`).

    Raises:
        ValueError: the scheduler is of another class, or sets an option that this schedule does not reproduce.
    """
    path, config = read_flow_scheduler(folder, used=("use_dynamic_shifting",))
    for name, default, wanted in (
        ("use_dynamic_shifting", False, True),
        ("time_shift_type", "exponential", "exponential"),
    ):
        if (found := config.get(name, default)) != wanted:
            raise ValueError(f"{path} sets {name} {found!r}, where this family uses {wanted!r}")
    return EvenFlowSchedule(shift_of)


def _single_outputs(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the output layers of the single blocks, whose ending is also the name of a list in the double blocks."""
    return tuple(f"single_transformer_blocks.{index}.attn.to_out" for index in range(config["num_single_layers"]))


LAYOUT = Layout(
    pipeline="Flux2KleinPipeline",
    network="transformer",
    classes={"transformer": "Flux2Transformer2DModel", "vae": "AutoencoderKLFlux2", "text_encoder": "Qwen3Model"},
    other_classes={"text_encoder": ("Qwen3ForCausalLM",)},
    repository="black-forest-labs/FLUX.2-klein-base-4B",
    licence={"license": "apache-2.0"},
    official=OFFICIAL,
    other_official=OTHERS,
    shapes=_shapes,
    blocks=_blocks,
    latents=lambda _: (1, math.inf),
    required=("vae", "scheduler", "text_encoder", "tokenizer"),
    read_schedule=read_schedule,
    defaults=SamplingDefaults(steps=50, guidance_scale=4.0, max_sequence_length=512),
    lora_targets=(
        *("to_q", "to_k", "to_v", "to_out.0"),  # double blocks: of the image
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of the text
        *("linear_in", "linear_out"),  # feed-forward, both
        *("to_qkv_mlp_proj", "attn.to_out"),  # single blocks
    ),
    lora_full_names=_single_outputs,
    text_widths=lambda config: (config["joint_attention_dim"], None),
    encoder_widths=lambda encoders: (len(HIDDEN_STATES) * encoders["text_encoder"].hidden_size, None),
    text_tensors=("context",),
    unread=("lm_head.",),
    text_layers=max(HIDDEN_STATES) + 1,  # the last hidden state of all is behind the final norm
    vae_factor=FACTOR,
    autoencoder=Autoencoder(
        factor=lambda config: PATCH * 2 ** (len(config["block_out_channels"]) - 1),
        channels=lambda config: PATCH**2 * config["latent_channels"],
        decode_bytes=lambda config, pixels, bf16: decode_bytes(
            {"block_out_channels": config.get("decoder_block_out_channels") or config["block_out_channels"]},
            pixels,
            bf16,
        ),
    ),
    text_tokens=lambda _, length: length,
    image_first=True,
    single_file_network=True,
    call_memory=count_calls_of("flux2_klein"),
)
