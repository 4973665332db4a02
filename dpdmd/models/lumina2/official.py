"""Configurations of Lumina-Image 2.0's components, as in its repository; libraries' defaults left out."""

from dpdmd.models.official_parts import FLUX_VAE

OFFICIAL = {
    "transformer": {
        "in_channels": 16,
        "hidden_size": 2304,
        "num_layers": 26,
        "num_refiner_layers": 2,
        "num_attention_heads": 24,
        "num_kv_heads": 8,
        "cap_feat_dim": 2304,
        "axes_dim_rope": (32, 32, 32),
        "axes_lens": (300, 512, 512),
    },
    "vae": FLUX_VAE,
    "text_encoder": {
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
    },
    "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 6.0},
    "tokenizer": {"tokenizer_class": "GemmaTokenizer", "padding_side": "right"},
}
