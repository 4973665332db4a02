"""The layout of Stability's SDXL checkpoints in one file: network, autoencoder and text encoders."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from dpdmd.models.discrete_schedule import VPredictionSchedule
from dpdmd.models.noise_schedule import Schedule
from dpdmd.models.original_names import Renaming, original_vae, renamed, with_text_model
from dpdmd.models.sdxl.layout import LAYOUT
from dpdmd.models.tensor_files import LazyTensor, Weights, concatenated, in_memory

_OUTSIDE = [
    (r"^time_embedding\.linear_1", "time_embed.0"),
    (r"^time_embedding\.linear_2", "time_embed.2"),
    (r"^add_embedding\.linear_1", "label_emb.0.0"),
    (r"^add_embedding\.linear_2", "label_emb.0.2"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
]
_RESNET = [
    (r"norm1\.", "in_layers.0."),
    (r"conv1\.", "in_layers.2."),
    (r"norm2\.", "out_layers.0."),
    (r"conv2\.", "out_layers.3."),
    (r"time_emb_proj\.", "emb_layers.1."),
    (r"conv_shortcut\.", "skip_connection."),
]
_OPENCLIP = [
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.embeddings\.token_embedding", "token_embedding"),
    (r"^text_model\.final_layer_norm", "ln_final"),
    (r"^text_projection\.weight", "text_projection"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"layer_norm([12])", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
    (r"self_attn\.out_proj", "attn.out_proj"),
]


def original_layout(parts: Mapping[str, Weights], source: Path) -> dict[str, LazyTensor]:
    """Return the weights of all components under the names of Stability's checkpoints (`Family.original_layout`)."""
    clip = with_text_model(parts["text_encoder"])
    layers = LAYOUT.network_config(source)["layers_per_block"]
    if not isinstance(layers, int):
        raise ValueError(
            f"{source / 'unet'} sets layers_per_block {layers}, for which Stability's layout has no numbers: leave out "
            "--single_file"
        )
    found = original_unet(parts["unet"], layers)
    found |= original_vae(parts["vae"])
    found |= {f"conditioner.embedders.0.transformer.{name}": value for name, value in clip.items()}
    openclip = original_openclip(with_text_model(parts["text_encoder_2"]))
    found |= {f"conditioner.embedders.1.model.{name}": value for name, value in openclip.items()}
    return found | in_memory(prediction_markers(LAYOUT.read_schedule(source)))


def prediction_markers(schedule: Schedule) -> dict[str, Tensor]:
    """Return the empty tensors by which ComfyUI knows what the network predicts: none for the noise."""
    if not isinstance(schedule, VPredictionSchedule):
        return {}
    return {name: torch.empty(0) for name in ("v_pred", *(["ztsnr"] if schedule.zero_snr else []))}


def original_unet(weights: Weights, layers_per_block: int) -> dict[str, LazyTensor]:
    """Return the weights of a UNet2DConditionModel under the names of latent diffusion's UNet.

    There the blocks of all levels are numbered on: after the first convolution `layers_per_block` blocks and a
    downsampling each, on the way up one more block each, in which an upsampling is the last part.
    """
    with_attention = {name.split(".")[1] for name in weights if re.match(r"up_blocks\.\d+\.attentions", name)}
    rules = [*_OUTSIDE, *_down_rules(layers_per_block), *_up_rules(layers_per_block, with_attention)]
    rules += [
        (r"^mid_block\.resnets\.(\d)", lambda found: f"middle_block.{2 * int(found[1])}"),
        (r"^mid_block\.attentions\.0", "middle_block.1"),
    ]

    def name_of(name: str) -> str:
        return f"model.diffusion_model.{renamed(renamed(name, _RESNET) if '.resnets.' in name else name, rules)}"

    return {name_of(name): value for name, value in weights.items()}


def _down_rules(layers: int) -> Renaming:
    def place(level: str, layer: str) -> int:
        return 1 + int(level) * (layers + 1) + int(layer)

    return [
        (r"^down_blocks\.(\d+)\.resnets\.(\d+)", lambda found: f"input_blocks.{place(found[1], found[2])}.0"),
        (r"^down_blocks\.(\d+)\.attentions\.(\d+)", lambda found: f"input_blocks.{place(found[1], found[2])}.1"),
        (r"^down_blocks\.(\d+)\.downsamplers\.0\.conv", lambda found: f"input_blocks.{place(found[1], layers)}.0.op"),
    ]


def _up_rules(layers: int, with_attention: set[str]) -> Renaming:
    def place(level: str, layer: str | int) -> int:
        return int(level) * (layers + 1) + int(layer)

    return [
        (r"^up_blocks\.(\d+)\.resnets\.(\d+)", lambda found: f"output_blocks.{place(found[1], found[2])}.0"),
        (r"^up_blocks\.(\d+)\.attentions\.(\d+)", lambda found: f"output_blocks.{place(found[1], found[2])}.1"),
        (
            r"^up_blocks\.(\d+)\.upsamplers\.0",
            lambda found: f"output_blocks.{place(found[1], layers)}.{1 + (found[1] in with_attention)}",
        ),
    ]


def original_openclip(weights: Weights) -> dict[str, LazyTensor]:
    """Return the weights of a CLIPTextModelWithProjection under the names of OpenCLIP: q, k and v in one matrix."""
    found = {}
    for name, value in weights.items():
        attention = re.match(r"text_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)$", name)
        if attention is None:
            value = value.map(torch.t, value.shape[::-1]) if name.startswith("text_projection.") else value
            found[renamed(name, _OPENCLIP)] = value
        elif attention[2] == "q":
            three = [weights[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"]
            found[f"transformer.resblocks.{attention[1]}.attn.in_proj_{attention[3]}"] = concatenated(three)
    return found
