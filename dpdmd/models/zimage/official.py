"""Configurations of Z-Image's components, as in its repository; libraries' defaults left out."""

from dpdmd.models.official_parts import FLUX_VAE

OFFICIAL = {
    "transformer": {
        "in_channels": 16,
        "dim": 3840,
        "n_layers": 30,
        "n_refiner_layers": 2,
        "n_heads": 30,
        "n_kv_heads": 30,
        "cap_feat_dim": 2560,
        "axes_dims": (32, 48, 48),
        "axes_lens": (1536, 512, 512),
    },
    "vae": FLUX_VAE,
    "text_encoder": {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 6.0},
    "tokenizer": {"tokenizer_class": "Qwen2Tokenizer", "model_max_length": 131072, "pad_token": "<|endoftext|>"},
}
