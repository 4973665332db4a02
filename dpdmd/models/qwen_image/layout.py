"""Folder layout, shapes and noise schedule of Qwen-Image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpdmd.models.activation_memory import BF16, FP32
from dpdmd.models.counted_memory import count_calls_of
from dpdmd.models.even_flow_schedule import EvenFlowSchedule
from dpdmd.models.flow_scheduler import read_dynamic_shift
from dpdmd.models.layout import Layout
from dpdmd.models.layout_values import Autoencoder, Guidance
from dpdmd.models.qwen_image.official import OFFICIAL
from dpdmd.models.sampling_defaults import SamplingDefaults
from dpdmd.models.weight_files import Shape
from dpdmd.utils.json_values import is_finite_number

PATCH = 2  # latents a side of one token
TOKEN_SIDE = 8 * PATCH  # pixels a side of one token
MAX_TEXT = 1024  # tokens of a prompt
POSITIONS = 4096  # of the table of rotary embeddings
# The pipeline cuts these tokens off, by their number.
PROMPT_START = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
START_TOKENS = 34


def _shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    width, channels = config["num_attention_heads"] * config["attention_head_dim"], config["in_channels"]
    return {
        "img_in.weight": (width, channels),
        "txt_in.weight": (width, config["joint_attention_dim"]),
        "transformer_blocks.0.attn.add_k_proj.weight": (width, width),
        "transformer_blocks.0.txt_mlp.net.0.proj.weight": (4 * width, width),
        "proj_out.weight": (channels, width),
    }


def _latents(config: Mapping[str, Any]) -> tuple[int, float]:
    # Half the side's positions are below zero. Those of the text begin where the other half ends.
    return PATCH, PATCH * 2 * (POSITIONS - MAX_TEXT)


def _unused_layers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the layers behind the last attention on the text's side: the network throws their output away."""
    last = f"transformer_blocks.{config['num_layers'] - 1}."
    return tuple(last + layer for layer in ("attn.to_add_out", "txt_mlp.net.0.proj", "txt_mlp.net.2"))


def _check_autoencoder(config: Mapping[str, Any]) -> None:
    for name in ("latents_mean", "latents_std"):
        if name not in config:  # those of the class
            continue
        values = config[name]
        if not (isinstance(values, list) and len(values) == config["z_dim"] and all(map(is_finite_number, values))):
            raise ValueError(f"sets {name} {values!r}, which must be {config['z_dim']} numbers")
        if name == "latents_std" and min(values) <= 0:
            raise ValueError(f"sets {name} {values!r}, which must be above 0")


def _decode_bytes(config: Mapping[str, Any], pixels: int, bf16: bool) -> int:
    """Return the peak while an AutoencoderKLQwenImage decodes one image.

    The peak is at full size, in a convolution of the last residual blocks: its input with two empty frames before it
    (three numbers), its output, the input before the padding, the block's input, and its shortcut.
    """
    return 7 * config["base_dim"] * config["dim_mult"][0] * pixels * (BF16 if bf16 else FP32)


def _check_tokenizer(tokenizer: Any) -> None:
    count = len(tokenizer(PROMPT_START).input_ids)
    if count != START_TOKENS:
        raise ValueError(
            f"its tokenizer makes {count} tokens of the template before a prompt, but the pipeline cuts off "
            f"{START_TOKENS}; take this model's own tokenizer"
        )


def read_schedule(folder: Path) -> EvenFlowSchedule:
    """Return the schedule of a FlowMatchEulerDiscreteScheduler whose shift may grow with the number of image tokens.

    Raises:
        ValueError: the scheduler is of another class, or sets an option that this schedule does not reproduce.
    """
    shift, terminal = read_dynamic_shift(folder)
    if not callable(shift):
        return EvenFlowSchedule(shift, terminal)
    return EvenFlowSchedule(lambda pixels, steps: shift(pixels // TOKEN_SIDE**2), terminal)


LAYOUT = Layout(
    pipeline="QwenImagePipeline",
    network="transformer",
    classes={
        "transformer": "QwenImageTransformer2DModel",
        "vae": "AutoencoderKLQwenImage",
        "text_encoder": "Qwen2_5_VLForConditionalGeneration",
    },
    repository="Qwen/Qwen-Image",
    licence={"license": "apache-2.0"},
    official=OFFICIAL,
    shapes=_shapes,
    blocks=lambda config: {"transformer_blocks.": config["num_layers"]},
    latents=_latents,
    required=("vae", "scheduler", "text_encoder", "tokenizer"),
    read_schedule=read_schedule,
    defaults=SamplingDefaults(steps=50, guidance_scale=4.0, max_sequence_length=512),
    lora_targets=(
        *("to_q", "to_k", "to_v", "to_out.0"),  # of the image
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),  # of the text
        *("net.0.proj", "net.2"),  # feed-forward, both
    ),
    text_widths=lambda config: (config["joint_attention_dim"], None),
    guidance=Guidance("u + s (c - u), each token with the norm of c", null_prompt=" ", argument="true_cfg_scale"),
    text_tensors=("context", "lengths"),
    latent_channels=lambda config: config["in_channels"] // PATCH**2,
    check_tokenizer=_check_tokenizer,
    unread=("visual.", "model.visual.", "lm_head."),
    frozen=lambda config: tuple(f"{layer}.{part}" for layer in _unused_layers(config) for part in ("weight", "bias")),
    lora_excluded=_unused_layers,
    autoencoder=Autoencoder(
        factor=lambda config: 2 ** len(config["temperal_downsample"]),
        channels=lambda config: config["z_dim"],
        check=_check_autoencoder,
        decode_bytes=_decode_bytes,
    ),
    call_memory=count_calls_of("qwen_image"),
    text_tokens=lambda _, length: length,
    longest_text=lambda _: MAX_TEXT,
    single_file_network=True,
)
