"""Folder layout, shapes and noise schedule of Lumina-Image 2.0."""

from collections.abc import Mapping
from typing import Any

from dpdmd.models.counted_memory import count_calls_of
from dpdmd.models.flow_scheduler import read_even_schedule
from dpdmd.models.layout import Layout
from dpdmd.models.layout_values import Guidance
from dpdmd.models.lumina2.official import OFFICIAL
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.weight_files import Shape

PATCH = 2  # latents a side of one token; the only patch of the official model


def _shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    width, numbers = config["hidden_size"], PATCH**2 * config["in_channels"]
    return {
        "x_embedder.weight": (width, numbers),
        "time_caption_embed.caption_embedder.1.weight": (width, config["cap_feat_dim"]),
        "layers.0.attn.to_k.weight": (width // config["num_attention_heads"] * config["num_kv_heads"], width),
        "norm_out.linear_2.weight": (numbers, width),
    }


LAYOUT = Layout(
    pipeline="Lumina2Pipeline",
    network="transformer",
    classes={"transformer": "Lumina2Transformer2DModel", "vae": "AutoencoderKL", "text_encoder": "Gemma2Model"},
    repository="Alpha-VLLM/Lumina-Image-2.0",
    licence={"license": "apache-2.0"},
    official=OFFICIAL,
    shapes=_shapes,
    blocks=lambda config: {
        "context_refiner.": config["num_refiner_layers"],
        "noise_refiner.": config["num_refiner_layers"],
        "layers.": config["num_layers"],
    },
    latents=lambda config: (PATCH, PATCH * min(config["axes_lens"][1:])),
    required=("vae", "scheduler", "text_encoder", "tokenizer"),
    read_schedule=read_even_schedule,
    defaults=SamplingDefaults(steps=30, guidance_scale=4.0, max_sequence_length=256),
    lora_targets=(
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3"),
    ),
    text_widths=lambda config: (config["cap_feat_dim"], None),
    guidance=Guidance("u + s (c - u), each row of a channel as long as c's"),
    text_tensors=("context", "lengths"),
    call_memory=count_calls_of("lumina2"),
    comfyui_reads_lora=False,
    text_tokens=lambda _, length: length,
    longest_text=lambda config: config["axes_lens"][0] - 1,  # the image's position is the number of tokens
)
