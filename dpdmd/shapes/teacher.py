"""Trains the small world's teacher: an SD3 transformer and its three text encoders, by flow matching."""

import copy

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from tqdm import tqdm

from dpdmd.rng import numpy_generator, torch_generator
from dpdmd.schedules import FlowSchedule, shift_sigmas
from dpdmd.shapes import text
from dpdmd.shapes.autoencoder import LATENT_CHANNELS, encode_scenes
from dpdmd.shapes.world import sample_caption, sample_scene

SHIFT = 3.0  # SD3.5-Medium's
TRAINING_SHIFT = 2.0  # of the training times: attributes are decided at high noise, so train there more often
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
NUM_SCENES = 24_000


def build_transformer() -> SD3Transformer2DModel:
    """SD3.5-Medium's transformer in small: RMS-normed queries and keys, dual attention in the first blocks."""
    width, heads = 96, 3
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=6,
        attention_head_dim=width // heads,
        num_attention_heads=heads,
        joint_attention_dim=text.T5_WIDTH,
        caption_projection_dim=width,
        pooled_projection_dim=2 * text.CLIP_WIDTH,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0, 1),
    )


def build_pipeline(vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """The complete pipeline around `vae`, every other weight random."""
    tokenizer, tokenizer_2 = text.build_clip_tokenizer("<|endoftext|>"), text.build_clip_tokenizer("!")
    tokenizer_3 = text.build_t5_tokenizer()
    return StableDiffusion3Pipeline(
        transformer=build_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=vae,
        text_encoder=text.build_clip_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=text.build_clip_encoder(tokenizer_2),
        tokenizer_2=tokenizer_2,
        text_encoder_3=text.build_t5_encoder(tokenizer_3),
        tokenizer_3=tokenizer_3,
    )


def encode_with_gradient(pipe: StableDiffusion3Pipeline, captions: list[str]) -> tuple[Tensor, Tensor]:
    """What `pipe.encode_prompt` computes, with gradients (diffusers' own is under no_grad): context and pooled."""

    def ids(tokenizer) -> Tensor:
        return tokenizer(
            captions, padding="max_length", max_length=text.MAX_LENGTH, truncation=True, return_tensors="pt"
        ).input_ids

    first = pipe.text_encoder(ids(pipe.tokenizer), output_hidden_states=True)
    second = pipe.text_encoder_2(ids(pipe.tokenizer_2), output_hidden_states=True)
    clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    t5 = pipe.text_encoder_3(ids(pipe.tokenizer_3))[0]
    clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
    return torch.cat([clip, t5], dim=1), torch.cat([first.text_embeds, second.text_embeds], dim=-1)


def train_teacher(
    vae: AutoencoderKL, seed: int, num_steps: int, batch_size: int = 48, lr: float = 1e-3
) -> StableDiffusion3Pipeline:
    """Flow matching on encoded scenes with captions; returns the pipeline with averaged (EMA) weights.

    Times are uniform, then shifted by `TRAINING_SHIFT`; a tenth of the captions is empty, for guidance.
    """
    torch.manual_seed(seed)
    pipe = build_pipeline(vae)
    trained = nn.ModuleList([pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3]).train()
    average = copy.deepcopy(trained).requires_grad_(False)
    moments = encode_scenes(vae, seed, range(NUM_SCENES))
    mean, deviation = moments.split(LATENT_CHANNELS, dim=1)
    scenes = [sample_scene(seed, index) for index in range(NUM_SCENES)]
    optimizer = torch.optim.AdamW(trained.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=num_steps, pct_start=0.05)
    flow, noise = FlowSchedule(SHIFT), torch_generator(seed, "teacher noise")
    progress = tqdm(range(num_steps), desc="teacher")
    for step in progress:
        draw = numpy_generator(seed, "teacher batch", step)
        rows = draw.integers(NUM_SCENES, size=batch_size)
        captions = [sample_caption(scenes[row], seed, step * batch_size + i) for i, row in enumerate(rows)]
        dropped = draw.random(batch_size) < CAPTION_DROPOUT
        captions = ["" if empty else line for line, empty in zip(captions, dropped, strict=True)]
        latents = mean[rows] + deviation[rows] * torch.randn(mean[rows].shape, generator=noise)
        x0 = (latents - vae.config.shift_factor) * vae.config.scaling_factor
        sigma = shift_sigmas(torch.rand(batch_size, generator=noise), TRAINING_SHIFT)
        eps = torch.randn(x0.shape, generator=noise)
        context, pooled = encode_with_gradient(pipe, captions)
        velocity = pipe.transformer(
            hidden_states=flow.add_noise(x0, eps, sigma),
            timestep=sigma * 1000,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        loss = F.mse_loss(velocity, flow.target(x0, eps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(average.parameters()), list(trained.parameters()), 1 - decay)
        if step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.4f}")
    for parameter, averaged in zip(trained.parameters(), average.parameters(), strict=True):
        parameter.data.copy_(averaged)
    trained.eval().requires_grad_(False)
    return pipe
