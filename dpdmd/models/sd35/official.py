"""Configurations of Stable Diffusion 3.5-Medium's components, as in its repository; libraries' defaults left out."""

from dpdmd.config.variants import SD3_MEDIUM, SD35_LARGE
from dpdmd.models.official_parts import CLIP_G, CLIP_G_TOKENIZER, CLIP_L, CLIP_L_TOKENIZER, VAE

OFFICIAL = {
    "transformer": {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(13)),
    },
    "vae": {
        **VAE,
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "text_encoder": CLIP_L,
    "text_encoder_2": CLIP_G,
    "text_encoder_3": {
        "d_model": 4096,
        "d_ff": 10240,
        "d_kv": 64,
        "num_heads": 64,
        "num_layers": 24,
        "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
    "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    "tokenizer": CLIP_L_TOKENIZER,
    "tokenizer_2": CLIP_G_TOKENIZER,
    "tokenizer_3": {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "pad_token": "<pad>"},
}

OTHERS = {  # what differs in other models of the family
    SD35_LARGE: {
        "transformer": {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "dual_attention_layers": (),
        }
    },
    SD3_MEDIUM: {"transformer": {"pos_embed_max_size": 192, "qk_norm": None, "dual_attention_layers": ()}},
}
