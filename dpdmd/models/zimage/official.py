"""Configurations of Z-Image's components, as in its repository; libraries' defaults left out."""

from dpdmd.models.official_parts import QWEN3_4B, QWEN_TOKENIZER, VAE

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
    "vae": {
        **VAE,
        "latent_channels": 16,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "text_encoder": QWEN3_4B,
    "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 6.0},
    "tokenizer": QWEN_TOKENIZER,
}
