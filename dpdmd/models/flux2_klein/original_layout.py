"""The layout of Black Forest Labs' own FLUX.2-klein files, which hold the network alone; ComfyUI reads them too."""

import re

from dpdmd.models.original_names import renamed, shift_first
from dpdmd.models.tensor_files import LazyTensor, Weights, concatenated

_NETWORK = [
    (r"^x_embedder\.", "img_in."),
    (r"^context_embedder\.", "txt_in."),
    (r"^time_guidance_embed\.timestep_embedder\.linear_1\.", "time_in.in_layer."),
    (r"^time_guidance_embed\.timestep_embedder\.linear_2\.", "time_in.out_layer."),
    (r"^((?:double|single)_stream_modulation\w*)\.linear\.", r"\1.lin."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_qkv_mlp_proj\.", r"single_blocks.\1.linear1."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.to_out\.", r"single_blocks.\1.linear2."),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_q\.weight", r"single_blocks.\1.norm.query_norm.scale"),
    (r"^single_transformer_blocks\.(\d+)\.attn\.norm_k\.weight", r"single_blocks.\1.norm.key_norm.scale"),
    (r"^transformer_blocks\.", "double_blocks."),
    (r"\.attn\.norm_q\.weight", ".img_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight", ".img_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_added_q\.weight", ".txt_attn.norm.query_norm.scale"),
    (r"\.attn\.norm_added_k\.weight", ".txt_attn.norm.key_norm.scale"),
    (r"\.attn\.to_out\.0\.", ".img_attn.proj."),
    (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
    (r"\.ff\.linear_in\.", ".img_mlp.0."),
    (r"\.ff\.linear_out\.", ".img_mlp.2."),
    (r"\.ff_context\.linear_in\.", ".txt_mlp.0."),
    (r"\.ff_context\.linear_out\.", ".txt_mlp.2."),
]
_JOINED = {"to_q": ("img_attn", "to_q", "to_k", "to_v"), "add_q_proj": ("txt_attn", *(f"add_{x}_proj" for x in "qkv"))}


def original_transformer(weights: Weights) -> dict[str, LazyTensor]:
    """Return the weights of a Flux2Transformer2DModel under the original names: q, k and v in one matrix."""
    found = {}
    for name, value in weights.items():
        attention = re.match(r"transformer_blocks\.(\d+\.)attn\.((?:to|add)_[qkv](?:_proj)?)\.weight$", name)
        if attention is None:
            found[renamed(name, _NETWORK)] = shift_first(value) if name == "norm_out.linear.weight" else value
        elif attention[2] in _JOINED:
            stream, *three = _JOINED[attention[2]]
            joined = concatenated([weights[f"transformer_blocks.{attention[1]}attn.{part}.weight"] for part in three])
            found[f"double_blocks.{attention[1]}{stream}.qkv.weight"] = joined
    return found
