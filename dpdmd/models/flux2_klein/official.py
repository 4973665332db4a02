"""Configurations of FLUX.2-klein-base-4B's components, as in its repository; libraries' defaults left out."""

from dpdmd.config.variants import FLUX2_KLEIN_9B
from dpdmd.models.official_parts import QWEN3_4B, QWEN_TOKENIZER, VAE

OFFICIAL = {
    "transformer": {
        "in_channels": 128,
        "num_layers": 5,
        "num_single_layers": 20,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
    },
    "vae": {**VAE, "latent_channels": 32},
    "text_encoder": QWEN3_4B,
    "scheduler": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "shift": 3.0,
        "use_dynamic_shifting": True,
    },
    "tokenizer": QWEN_TOKENIZER,
}

OTHERS = {  # what differs in other models of the family
    FLUX2_KLEIN_9B: {
        "transformer": {
            "num_layers": 8,
            "num_single_layers": 24,
            "num_attention_heads": 32,
            "joint_attention_dim": 12288,
        },
        "text_encoder": {"hidden_size": 4096, "intermediate_size": 12288},  # Qwen3-8B
    }
}
