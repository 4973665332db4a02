"""Trains the small world's teacher: an SD3 transformer by flow matching, on captions encoded once."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor, nn
from tqdm import tqdm

from dpdmd.models.noise_schedule import NUM_TRAIN_TIMESTEPS, FlowSchedule, shift_sigmas
from dpdmd.shapes import pairs, text, world
from dpdmd.shapes.autoencoder import LATENT_CHANNELS, LATENT_SIZE, encode_scenes
from dpdmd.shapes.world import World
from dpdmd.utils.rng import numpy_generator, torch_generator

SHIFT = 3.0  # SD3.5-Medium's
TRAINING_SHIFT = 1.5  # of the training times: attributes are decided at high noise, so train there more often
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
# Threads that take a part of each batch and of the matrices: faster than threads inside each small operation, and as
# the number is fixed, a seed gives the same weights on machines of any size.
NUM_WORKERS = 2


def build_transformer() -> SD3Transformer2DModel:
    """SD3.5-Medium's transformer in small: RMS-normed queries and keys, dual attention in the first blocks.

    Modulations and the output start at zero (adaLN-Zero, arXiv 2212.09748), which diffusers leaves to training.
    """
    width, heads = 96, 3
    transformer = SD3Transformer2DModel(
        sample_size=LATENT_SIZE,
        patch_size=1,
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
    for name, module in transformer.named_modules():
        if isinstance(module, nn.Linear) and (_is_modulation(name) or name == "proj_out"):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return transformer


def _is_modulation(name: str) -> bool:
    """Whether a module or parameter belongs to an adaptive layer norm's linear map."""
    return ".linear" in name and "norm" in name


def build_pipeline(vae: AutoencoderKL, world: World) -> StableDiffusion3Pipeline:
    """The complete pipeline around `vae` for the captions of `world`, every other weight random."""
    tokenizer, tokenizer_2 = (text.build_clip_tokenizer(pad, world) for pad in ("<|endoftext|>", "!"))
    tokenizer_3 = text.build_t5_tokenizer(world)
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


def build_optimizers(transformer: SD3Transformer2DModel, lr_matrices: float, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, one for each worker, and AdamW for all else.

    Measured in four minutes on one core, 500 steps: loss 0.155 at sigma 0.5, where AdamW alone at 1e-3 had 0.332.
    """
    named = dict(transformer.named_parameters())
    matrices = [n for n, p in named.items() if n.startswith("transformer_blocks.") and p.ndim == 2]
    matrices = [named.pop(name) for name in matrices if not _is_modulation(name)]
    muon = partial(torch.optim.Muon, lr=lr_matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(named.values(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    return [*(muon(matrices[worker::NUM_WORKERS]) for worker in range(NUM_WORKERS)), adamw]


def encode_captions(pipe: StableDiffusion3Pipeline, world: World) -> tuple[dict[str, int], Tensor, Tensor]:
    """Every caption's row, and by row its context [N, tokens, width] and pooled [N, width]; row 0 is empty."""
    captions = ["", *world.all_captions()]
    context, _, pooled, _ = pipe.encode_prompt(
        captions, None, None, do_classifier_free_guidance=False, max_sequence_length=text.MAX_LENGTH
    )
    return {caption: row for row, caption in enumerate(captions)}, context, pooled


@dataclass(frozen=True)
class Cycle:
    """A stretch of training with its own optimizers: warm up, stay, fall linearly in the second half.

    Attributes:
        num_steps: updates.
        lr_factor: of the peak learning rates.
        logit_normal: whether times are drawn denser in the middle, as SD3 does (arXiv 2403.03206), or uniformly.
    """

    num_steps: int
    lr_factor: float
    logit_normal: bool

    def sample_sigmas(self, uniform: Tensor) -> Tensor:
        """Training times from numbers in (0, 1)."""
        if self.logit_normal:
            uniform = torch.sigmoid(torch.special.ndtri(uniform.clamp(1e-4, 1 - 1e-4)))
        return shift_sigmas(uniform, TRAINING_SHIFT)


@dataclass(frozen=True)
class Recipe:
    """How the weights of one world are made.

    Attributes:
        world: what images and captions there are.
        vae_steps: updates of the autoencoder.
        text_steps: updates of each text encoder: enough for it to name every attribute.
        num_scenes: different images that the teacher sees.
        cycles: of the teacher's training.
    """

    world: World
    vae_steps: int
    text_steps: int
    num_scenes: int
    cycles: tuple[Cycle, ...]


# The second cycle starts from the average of the first; it turns drawn-together shapes into clean ones. A third of
# 1,600 steps at a quarter of the rate added 0.2 points of accuracy, so it is not here.
ONE_OBJECT = Recipe(
    world, 2400, 300, 24_000, (Cycle(9000, 1.0, logit_normal=False), Cycle(6000, 0.5, logit_normal=True))
)
# Goes on from the weights of ONE_OBJECT, but for its encoders, which know fewer words.
PAIRS = Recipe(
    pairs,
    1200,
    1000,
    48_000,
    (
        Cycle(5000, 1.0, logit_normal=False),
        Cycle(4000, 0.5, logit_normal=True),
        Cycle(5000, 1.0, logit_normal=False),
    ),
)


def lr_factor(num_steps: int, index: int) -> float:
    """Share of the peak learning rate at step `index` of a cycle: up, level, and down from the middle."""
    return min((index + 1) / (0.03 * num_steps), 1.0, max(2 - 2 * index / num_steps, 0.02))


def train_teacher(
    vae: AutoencoderKL,
    seed: int,
    recipe: Recipe,
    start: SD3Transformer2DModel | None = None,
    batch_size: int = 48,
    lr_matrices: float = 1e-2,
    lr: float = 2e-3,
) -> StableDiffusion3Pipeline:
    """Flow matching on encoded scenes with captions; returns the pipeline with averaged (EMA) weights.

    The transformer begins with the weights of `start`, if given. Times are stratified over the batch; a tenth of the
    captions is empty, for guidance.
    """
    torch.manual_seed(seed)
    world = recipe.world
    pipe = build_pipeline(vae, world)
    for suffix in ("", "_2", "_3"):
        encoder, tokenizer = getattr(pipe, "text_encoder" + suffix), getattr(pipe, "tokenizer" + suffix)
        text.train_text_encoder(encoder, tokenizer, seed, world, recipe.text_steps)
    row_of, context, pooled = encode_captions(pipe, world)
    scenes = [world.sample_scene(seed, index) for index in range(recipe.num_scenes)]
    latents = encode_scenes(vae, seed, range(recipe.num_scenes), world)
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    if start is not None:
        pipe.transformer.load_state_dict(start.state_dict())
    flow, noise = FlowSchedule(SHIFT), torch_generator(seed, "teacher noise")
    transformer = pipe.transformer.train()
    parameters = list(transformer.parameters())
    workers = ThreadPoolExecutor(NUM_WORKERS, initializer=torch.set_num_threads, initargs=(1,))
    progress = tqdm(total=sum(cycle.num_steps for cycle in recipe.cycles), desc="teacher")

    def loss_and_gradient(
        x0: Tensor, eps: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Of a worker's part of a batch."""
        velocity = transformer(
            hidden_states=flow.add_noise(x0, eps, sigma),
            timestep=sigma * NUM_TRAIN_TIMESTEPS,
            encoder_hidden_states=context,
            pooled_projections=pooled,
            return_dict=False,
        )[0]
        loss = F.mse_loss(velocity, flow.target(x0, eps))
        return loss.detach(), torch.autograd.grad(loss, parameters)

    def train_step(step: int, cycle: Cycle) -> Tensor:
        """Loss of one batch, its gradient in the transformer."""
        draw = numpy_generator(seed, "teacher batch", step)
        picked = draw.integers(recipe.num_scenes, size=batch_size)
        dropped = draw.random(batch_size) < CAPTION_DROPOUT
        said = [world.sample_caption(scenes[p], seed, step * batch_size + i) for i, p in enumerate(picked)]
        rows = [0 if empty else row_of[caption] for caption, empty in zip(said, dropped, strict=True)]
        x0 = latents[picked]
        sigma = cycle.sample_sigmas((torch.arange(batch_size) + torch.rand(batch_size, generator=noise)) / batch_size)
        eps = torch.randn(x0.shape, generator=noise)
        batch = (x0, eps, sigma, context[rows], pooled[rows])
        losses, gradients = zip(*workers.map(loss_and_gradient, *(t.chunk(NUM_WORKERS) for t in batch)), strict=True)
        for parameter, *parts in zip(parameters, *gradients, strict=True):
            parameter.grad = sum(parts) / NUM_WORKERS
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        return sum(losses) / NUM_WORKERS

    done = 0
    for cycle in recipe.cycles:
        average = copy.deepcopy(transformer).requires_grad_(False)
        optimizers = build_optimizers(transformer, lr_matrices * cycle.lr_factor, lr * cycle.lr_factor)
        schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, partial(lr_factor, cycle.num_steps))
            for optimizer in optimizers
        ]
        for index in range(cycle.num_steps):
            loss = train_step(done + index, cycle)
            list(workers.map(lambda optimizer: optimizer.step(), optimizers))
            for schedule in schedules:
                schedule.step()
            decay = min(EMA_DECAY, (index + 1) / (index + 10))
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
            progress.update()
            if index % 50 == 0:
                progress.set_postfix(loss=f"{loss.item():.4f}")
        transformer.load_state_dict(average.state_dict())
        done += cycle.num_steps
    workers.shutdown()
    transformer.eval().requires_grad_(False)
    return pipe
