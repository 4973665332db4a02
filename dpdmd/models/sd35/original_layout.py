"""The layout of Stability's SD3 checkpoints in one file: network, autoencoder and text encoders."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from dpdmd.models.original_names import original_vae, renamed, shift_first, with_text_model
from dpdmd.models.sd35.layout import LAYOUT
from dpdmd.models.tensor_files import LazyTensor, Weights, concatenated

_OUTSIDE = [
    (r"^pos_embed\.pos_embed$", "pos_embed"),
    (r"^pos_embed\.proj", "x_embedder.proj"),
    (r"^time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"^time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"^time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
    (r"^time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"^proj_out", "final_layer.linear"),
]
_INSIDE = [  # of a block
    (r"^norm1_context\.linear", "context_block.adaLN_modulation.1"),
    (r"^norm1\.linear", "x_block.adaLN_modulation.1"),
    (r"^ff_context\.net\.0\.proj", "context_block.mlp.fc1"),
    (r"^ff_context\.net\.2", "context_block.mlp.fc2"),
    (r"^ff\.net\.0\.proj", "x_block.mlp.fc1"),
    (r"^ff\.net\.2", "x_block.mlp.fc2"),
    (r"^attn\.to_add_out", "context_block.attn.proj"),
    (r"^attn\.norm_added_", "context_block.attn.ln_"),
    (r"^(attn2?)\.to_out\.0", r"x_block.\1.proj"),
    (r"^(attn2?)\.norm_", r"x_block.\1.ln_"),
]
# The first of three layers that the original has as one -> (the other two, the original's name).
_TRIPLES = {
    "attn.to_q": (("attn.to_k", "attn.to_v"), "x_block.attn.qkv"),
    "attn2.to_q": (("attn2.to_k", "attn2.to_v"), "x_block.attn2.qkv"),
    "attn.add_q_proj": (("attn.add_k_proj", "attn.add_v_proj"), "context_block.attn.qkv"),
}
_ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g", "text_encoder_3": "t5xxl"}


def original_layout(parts: Mapping[str, Weights], source: Path) -> dict[str, LazyTensor]:
    """Return the weights of all components under the names of Stability's checkpoints (`Family.original_layout`)."""
    network = original_transformer(parts["transformer"], LAYOUT.count_blocks(source))
    found = {f"model.diffusion_model.{name}": value for name, value in network.items()}
    found |= original_vae(parts["vae"])
    _check_projection(parts["text_encoder"], source)
    for component, theirs in _ENCODERS.items():
        if weights := parts.get(component):
            named = _with_embedding(weights) if theirs == "t5xxl" else with_text_model(weights)
            found |= {f"text_encoders.{theirs}.transformer.{name}": value for name, value in named.items()}
    return found


def original_transformer(weights: Weights, num_blocks: int) -> dict[str, LazyTensor]:
    """Return the weights of an SD3Transformer2DModel under the names of Stability's MMDiT."""
    found = {}
    for name, value in weights.items():
        block = re.match(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)$", name)
        if block is None:
            value = shift_first(value) if name.startswith("norm_out.") else value
            found[renamed(name, _OUTSIDE)] = value
            continue
        number, layer, kind = block.groups()
        if layer in _TRIPLES:
            others, theirs = _TRIPLES[layer]
            rest = [weights[f"transformer_blocks.{number}.{other}.{kind}"] for other in others]
            found[f"joint_blocks.{number}.{theirs}.{kind}"] = concatenated([value, *rest])
        elif not any(layer in others for others, _ in _TRIPLES.values()):
            # The last block's text gives no output: its modulation is a shift and a scale, as in the last layer.
            last = layer == "norm1_context.linear" and int(number) == num_blocks - 1
            found[f"joint_blocks.{number}.{renamed(layer, _INSIDE)}.{kind}"] = shift_first(value) if last else value
    return found


def _with_embedding(t5: Weights) -> Weights:
    """Return the weights of a T5 with its table of tokens under both names: diffusers' reader does not tie the two."""
    names = ("shared.weight", "encoder.embed_tokens.weight")  # a file may have either
    return dict.fromkeys(names, t5[next(name for name in names if name in t5)]) | dict(t5)


def _check_projection(clip: Weights, source: Path) -> None:
    """Check that the first CLIP's projection does nothing: loaders of this layout leave it out.

    Raises:
        ValueError: it is not the identity.
    """
    projection = clip["text_projection.weight"].read().float()
    if not torch.equal(projection, torch.eye(*projection.shape)):
        raise ValueError(
            f"{source / 'text_encoder'} has a text projection, for which SD3's single file has no place: leave out "
            "--single_file"
        )
