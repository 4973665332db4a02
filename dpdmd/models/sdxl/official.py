"""Configurations of the components of SDXL base 1.0, as in its repository; libraries' defaults left out."""

from dpdmd.config.variants import SDXL_V
from dpdmd.models.official_parts import CLIP_G, CLIP_G_TOKENIZER, CLIP_L, CLIP_L_TOKENIZER, VAE

OFFICIAL = {
    "unet": {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "cross_attention_dim": 2048,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": {
        **VAE,
        "latent_channels": 4,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    },
    "text_encoder": CLIP_L,
    "text_encoder_2": CLIP_G,
    "scheduler": {
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "timestep_spacing": "leading",
    },
    "tokenizer": CLIP_L_TOKENIZER,
    "tokenizer_2": CLIP_G_TOKENIZER,
}

OTHERS = {  # what differs in other models of the family
    SDXL_V: {"scheduler": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}}
}
