"""Folder layout, shapes and noise schedule of Z-Image."""

from collections.abc import Mapping
from typing import Any

from dpdmd.models.counted_memory import count_calls_of
from dpdmd.models.flow_scheduler import read_even_schedule
from dpdmd.models.layout import Layout
from dpdmd.models.layout_values import Guidance
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.weight_files import Shape
from dpdmd.models.zimage.official import OFFICIAL

PATCH = 2  # latents a side of one token; the only patch of the official models
MULTIPLE = 32  # to which the network fills the tokens of image and prompt


def _shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    width, patch = config["dim"], f"{PATCH}-1"
    return {
        f"all_x_embedder.{patch}.weight": (width, PATCH**2 * config["in_channels"]),
        "cap_embedder.1.weight": (width, config["cap_feat_dim"]),
        "cap_pad_token": (1, width),
        "layers.0.feed_forward.w1.weight": (int(width / 3 * 8), width),
        f"all_final_layer.{patch}.linear.weight": (PATCH**2 * config["in_channels"], width),
    }


def _latents(config: Mapping[str, Any]) -> tuple[int, float]:
    return PATCH, PATCH * min(config["axes_lens"][1:])


LAYOUT = Layout(
    pipeline="ZImagePipeline",
    network="transformer",
    classes={"transformer": "ZImageTransformer2DModel", "vae": "AutoencoderKL", "text_encoder": "Qwen3Model"},
    other_classes={"text_encoder": ("Qwen3ForCausalLM",)},
    repository="Tongyi-MAI/Z-Image",
    licence={"license": "apache-2.0"},
    official=OFFICIAL,
    shapes=_shapes,
    blocks=lambda config: {
        "noise_refiner.": config["n_refiner_layers"],
        "context_refiner.": config["n_refiner_layers"],
        "layers.": config["n_layers"],
    },
    latents=_latents,
    required=("vae", "scheduler", "text_encoder", "tokenizer"),
    read_schedule=read_even_schedule,
    defaults=SamplingDefaults(steps=50, guidance_scale=5.0, max_sequence_length=512),
    lora_targets=("to_q", "to_k", "to_v", "to_out.0", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    text_widths=lambda config: (config["cap_feat_dim"], None),
    guidance=Guidance("c + s (c - u)", off=0.0),
    text_tensors=("context", "lengths"),
    beside_single_file=("vae", "text_encoder"),  # the converter of the network takes all weights
    call_memory=count_calls_of("zimage"),
    text_tokens=lambda _, length: -(-length // MULTIPLE) * MULTIPLE,
)
