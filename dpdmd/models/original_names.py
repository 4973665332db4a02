"""Names of weights in the original checkpoints of latent diffusion, which ComfyUI and WebUIs load as one file.

diffusers converts these files to its own layout. The functions here go the other way.
"""

import re
from collections.abc import Sequence

import torch

from dpdmd.models.tensor_files import LazyTensor, Weights

Renaming = Sequence[tuple[str, str]]  # (regular expression, replacement), applied in order

_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_ATTENTION |= {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}  # in files of older versions


def renamed(name: str, rules: Renaming) -> str:
    """Return a name after every rule."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def original_vae(weights: Weights, prefix: str = "first_stage_model.") -> dict[str, LazyTensor]:
    """Return the weights of an AutoencoderKL under the names of latent diffusion, where attention is convolutions."""
    ups = 1 + max(int(found[1]) for name in weights if (found := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    rules = [
        (r"conv_norm_out", "norm_out"),
        (r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}"),
        (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d+)\.resnets", lambda found: f"up.{ups - 1 - int(found[1])}.block"),
        (r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{ups - 1 - int(found[1])}.upsample"),
        (r"conv_shortcut", "nin_shortcut"),
        (
            r"mid_block\.attentions\.0\.(.+)\.(weight|bias)",
            lambda found: f"mid.attn_1.{_ATTENTION[found[1]]}.{found[2]}",
        ),
    ]
    found = {}
    for name, value in weights.items():
        new = renamed(name, rules)
        if ".attn_1." in new and len(value.shape) == 2:
            value = value.map(lambda matrix: matrix[:, :, None, None], (*value.shape, 1, 1))
        found[f"{prefix}{new}"] = value
    return found


def shift_first(value: LazyTensor) -> LazyTensor:
    """Return a modulation as shift and scale; diffusers has the scale first."""
    return value.map(lambda tensor: torch.cat(tensor.chunk(2)[::-1]))


def with_text_model(weights: Weights) -> dict[str, LazyTensor]:
    """Return the weights of a CLIP under the names with `text_model.`, which newer files of one class lack."""
    kept = ("text_model.", "text_projection.")
    named = {name if name.startswith(kept) else f"text_model.{name}": value for name, value in weights.items()}
    return {name: value for name, value in named.items() if not name.endswith("position_ids")}
