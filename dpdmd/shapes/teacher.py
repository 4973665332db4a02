"""Train the small world's teacher: an SD3 transformer by flow matching, on scenes and captions encoded once."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from dpdmd.models.noise_schedule import NUM_TRAIN_TIMESTEPS, FlowSchedule
from dpdmd.shapes import pairs, text
from dpdmd.shapes.autoencoder import LATENT_CHANNELS, LATENT_SIZE, encode_scenes
from dpdmd.shapes.recipes import Cycle, Recipe, lr_factor
from dpdmd.shapes.world import World
from dpdmd.utils.atomic_files import replacing
from dpdmd.utils.rng import numpy_generator, torch_generator

SHIFT = 3.0  # SD3.5-Medium's
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
BATCH_SIZE = 48
LR_MATRICES, LR = 1e-2, 2e-3  # peaks
# Threads that each process a part of the batch and of the matrices: faster than threads within small operations. The
# number is fixed, so a seed gives the same weights on every machine.
NUM_WORKERS = 2
NOISE = "noise"  # the state of the noise's generator, in the file of a cycle's end


def build_transformer() -> SD3Transformer2DModel:
    """Build a small version of SD3.5-Medium's transformer: RMS-normed queries and keys, dual attention in two blocks.

    Modulations and the output start at zero (adaLN-Zero, arXiv 2212.09748), which diffusers does not do.
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
    """Return whether a module or parameter belongs to the linear map of an adaptive layer norm."""
    return ".linear" in name and "norm" in name


def build_pipeline(vae: AutoencoderKL, world: World) -> StableDiffusion3Pipeline:
    """Build the pipeline of `vae` for the captions of `world`; all other weights are random."""
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
    """Build one Muon per worker for the matrices of the blocks, and AdamW for the other parameters.

    After 500 steps (4 minutes on one core) the loss at sigma 0.5 was 0.155; with AdamW alone at 1e-3 it was 0.332.
    """
    named = dict(transformer.named_parameters())
    matrices = [n for n, p in named.items() if n.startswith("transformer_blocks.") and p.ndim == 2]
    matrices = [named.pop(name) for name in matrices if not _is_modulation(name)]
    muon = partial(torch.optim.Muon, lr=lr_matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(named.values(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    return [*(muon(matrices[worker::NUM_WORKERS]) for worker in range(NUM_WORKERS)), adamw]


def encode_captions(pipe: StableDiffusion3Pipeline, world: World) -> tuple[dict[str, int], Tensor, Tensor]:
    """Return caption -> row, and the rows of context [N, tokens, width] and pooled [N, width]; row 0 is empty."""
    captions = ["", *world.all_captions()]
    context, _, pooled, _ = pipe.encode_prompt(
        captions, None, None, do_classifier_free_guidance=False, max_sequence_length=text.MAX_LENGTH
    )
    return {caption: row for row, caption in enumerate(captions)}, context, pooled


@dataclass(frozen=True)
class TrainingData:
    """Encoded scenes, and encoded captions.

    Attributes:
        latents: [scenes, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE], scaled.
        row_of, context, pooled: see `encode_captions`.
    """

    world: World
    seed: int
    scenes: list[Any]
    latents: Tensor
    row_of: dict[str, int]
    context: Tensor
    pooled: Tensor

    @classmethod
    def encode(cls, pipe: StableDiffusion3Pipeline, recipe: Recipe, seed: int) -> "TrainingData":
        """Encode the scenes of a recipe and all captions of its world."""
        encoded_captions = encode_captions(pipe, recipe.world)
        scenes = [recipe.world.sample_scene(seed, index) for index in range(recipe.num_scenes)]
        latents = encode_scenes(pipe.vae, seed, range(recipe.num_scenes), recipe.world)
        latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
        return cls(recipe.world, seed, scenes, latents, *encoded_captions)

    def batch(self, step: int, size: int, cycle: Cycle, noise: torch.Generator) -> tuple[Tensor, ...]:
        """Return x0, eps, sigma, context and pooled of a batch.

        Times are stratified over the batch. A tenth of the captions is empty, for guidance.
        """
        draw = numpy_generator(self.seed, "teacher batch", step)
        picked = draw.integers(len(self.scenes), size=size)
        dropped = draw.random(size) < CAPTION_DROPOUT
        bound = draw.random(size) < cycle.binding
        captions = [
            pairs.binding_caption(scene)
            if bind and isinstance(scene, pairs.Pair)
            else self.world.sample_caption(scene, self.seed, step * size + i)
            for i, (scene, bind) in enumerate(zip((self.scenes[p] for p in picked), bound, strict=True))
        ]
        rows = [0 if empty else self.row_of[caption] for caption, empty in zip(captions, dropped, strict=True)]
        x0 = self.latents[picked]
        sigma = cycle.sample_sigmas((torch.arange(size) + torch.rand(size, generator=noise)) / size)
        eps = torch.randn(x0.shape, generator=noise)
        return x0, eps, sigma, self.context[rows], self.pooled[rows]


def set_gradients(transformer: SD3Transformer2DModel, batch: tuple[Tensor, ...], workers: ThreadPoolExecutor) -> Tensor:
    """Compute the gradients of a batch in NUM_WORKERS parallel parts, and return the loss."""
    parts = (tensor.chunk(NUM_WORKERS) for tensor in batch)
    losses, gradients = zip(*workers.map(partial(loss_and_gradients, transformer), *parts), strict=True)
    for parameter, *of_parts in zip(transformer.parameters(), *gradients, strict=True):
        parameter.grad = sum(of_parts) / NUM_WORKERS
    return sum(losses) / NUM_WORKERS


def loss_and_gradients(
    transformer: SD3Transformer2DModel, x0: Tensor, eps: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the flow-matching loss of a batch and its gradients, in the order of the parameters."""
    flow = FlowSchedule(SHIFT)
    velocity = transformer(
        hidden_states=flow.add_noise(x0, eps, sigma),
        timestep=sigma * NUM_TRAIN_TIMESTEPS,
        encoder_hidden_states=context,
        pooled_projections=pooled,
        return_dict=False,
    )[0]
    loss = F.mse_loss(velocity, flow.target(x0, eps, sigma))
    return loss.detach(), torch.autograd.grad(loss, list(transformer.parameters()))


def train_teacher(
    vae: AutoencoderKL, seed: int, recipe: Recipe, start: SD3Transformer2DModel | None, saved: Path, made_from: str
) -> StableDiffusion3Pipeline:
    """Train text encoders and transformer, and return the pipeline with averaged (EMA) weights.

    The transformer starts from the weights of `start`, if given. Every cycle's end is saved in the folder `saved`, and
    the training continues after the last whole cycle of the same seed, recipe, and `made_from`, a digest of `vae` and
    `start`.
    """
    torch.manual_seed(seed)
    pipe = build_pipeline(vae, recipe.world)
    for suffix in ("", "_2", "_3"):
        encoder, tokenizer = getattr(pipe, "text_encoder" + suffix), getattr(pipe, "tokenizer" + suffix)
        text.train_text_encoder(encoder, tokenizer, seed, recipe.world, recipe.text_steps)
    data = TrainingData.encode(pipe, recipe, seed)
    if start is not None:
        pipe.transformer.load_state_dict(start.state_dict())
    transformer, noise = pipe.transformer.train(), torch_generator(seed, "teacher noise")
    step, progress = 0, tqdm(total=sum(cycle.num_steps for cycle in recipe.cycles), desc="teacher")
    for number, cycle in enumerate(recipe.cycles):
        file = saved / f"cycle_{number}.safetensors"
        made_by = {"seed": str(seed), "cycles": repr(recipe.cycles[: number + 1]), "made_from": made_from}
        if _load_cycle(file, made_by, transformer, noise):
            progress.update(cycle.num_steps)
        else:
            _train_cycle(transformer, data, cycle, step, noise, progress)
            with replacing(file) as opened:
                opened.write(save({**transformer.state_dict(), NOISE: noise.get_state()}, made_by))
        step += cycle.num_steps
    transformer.eval().requires_grad_(False)
    return pipe


def _train_cycle(
    transformer: nn.Module, data: TrainingData, cycle: Cycle, first: int, noise: torch.Generator, progress: tqdm
) -> None:
    """Train for one cycle, from step `first` of all cycles, and give the transformer its averaged (EMA) weights."""
    average, parameters = copy.deepcopy(transformer).requires_grad_(False), list(transformer.parameters())
    optimizers = build_optimizers(transformer, LR_MATRICES * cycle.lr_factor, LR * cycle.lr_factor)
    factor = partial(lr_factor, cycle.num_steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, factor) for optimizer in optimizers]
    with ThreadPoolExecutor(NUM_WORKERS, initializer=torch.set_num_threads, initargs=(1,)) as workers:
        for index in range(cycle.num_steps):
            step = first + index
            loss = set_gradients(transformer, data.batch(step, BATCH_SIZE, cycle, noise), workers)
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            list(workers.map(lambda optimizer: optimizer.step(), optimizers))
            for schedule in schedules:
                schedule.step()
            decay = min(EMA_DECAY, (index + 1) / (index + 10))
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - decay)
            if step % 50 == 0:
                progress.set_postfix(loss=f"{loss.item():.4f}")
            progress.update()
    transformer.load_state_dict(average.state_dict())


def _load_cycle(
    file: Path, made_by: dict[str, str], transformer: SD3Transformer2DModel, noise: torch.Generator
) -> bool:
    """Load the end of a cycle, if it is there and was made by the same seed and cycles, and return whether it was."""
    if not file.exists():
        return False
    with safe_open(file, "pt") as opened:
        if opened.metadata() != made_by:
            return False
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    noise.set_state(state.pop(NOISE))
    transformer.load_state_dict(state)
    return True
