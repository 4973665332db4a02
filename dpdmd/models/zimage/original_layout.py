"""The layout of Z-Image checkpoints in one file, as ComfyUI reads them: network, autoencoder and text encoder."""

import re
from collections.abc import Mapping

from dpdmd.models.original_names import original_vae, renamed
from dpdmd.models.tensor_files import LazyTensor, Weights, concatenated

_NETWORK = [
    (r"^all_(x_embedder|final_layer)\.2-1\.", r"\1."),
    (r"\.attention\.to_out\.0\.", ".attention.out."),
    (r"\.attention\.norm_([qk])\.", r".attention.\1_norm."),
]


def original_layout(parts: Mapping[str, Weights]) -> dict[str, LazyTensor]:
    """Return the weights of all components under the names of ComfyUI's files (`Family.original_layout`)."""
    network = original_transformer(parts["transformer"])
    found = {f"model.diffusion_model.{name}": value for name, value in network.items()}
    found |= original_vae(parts["vae"], "vae.")
    return found | {
        f"text_encoders.qwen3_4b.transformer.model.{name.removeprefix('model.')}": value
        for name, value in parts["text_encoder"].items()
        if name != "lm_head.weight"  # the last layer but one is read
    }


def original_transformer(weights: Weights) -> dict[str, LazyTensor]:
    """Return the weights of a ZImageTransformer2DModel under the original names: q, k and v in one matrix."""
    found = {}
    for name, value in weights.items():
        attention = re.match(r"(.+\.attention\.)to_([qkv])\.(weight|bias)$", name)
        if attention is None:
            found[renamed(name, _NETWORK)] = value
        elif attention[2] == "q":
            three = [weights[f"{attention[1]}to_{part}.{attention[3]}"] for part in "qkv"]
            found[f"{attention[1]}qkv.{attention[3]}"] = concatenated(three)
    return found
