"""A small SD3.5 of random weights for every test that needs a model; nothing is downloaded."""

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from torch import nn

from dpdmd.families.layouts import Note
from dpdmd.shapes.autoencoder import build_autoencoder
from dpdmd.shapes.teacher import build_pipeline
from dpdmd.shapes.text import MAX_LENGTH

torch.set_num_threads(1)  # tiny matrices: threads cost more than they give, and the sums keep one order


def _strengthen(transformer: nn.Module) -> None:
    """Double the weights through which time and text modulate the blocks.

    With torch's initial weights the output changes by only 5% between prompts and times: a test in which a wrong
    time or a wrong prompt is fed would pass too easily.
    """
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if name.startswith(("time_text_embed", "norm_out")) or ".norm1." in name or ".norm1_context." in name:
                parameter.mul_(2)


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusion3Pipeline folder in the official layout: 64 x 64 pictures, two blocks of width 32."""
    folder = tmp_path_factory.mktemp("weights") / "tiny_sd35"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = build_autoencoder()
        vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
        pipe = build_pipeline(vae)
        smaller = {
            "num_layers": 2,
            "dual_attention_layers": (0,),
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "caption_projection_dim": 32,
        }
        pipe.register_modules(transformer=SD3Transformer2DModel.from_config({**pipe.transformer.config, **smaller}))
    _strengthen(pipe.transformer)
    pipe.save_pretrained(folder)
    Note(steps=30, guidance_scale=3.5, max_sequence_length=MAX_LENGTH).write(folder)
    return folder
