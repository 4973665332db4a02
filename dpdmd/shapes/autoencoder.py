"""Train the small world's AutoencoderKL: 64 x 64 images to 8 x 8 latents with 8 channels."""

import torch
from diffusers import AutoencoderKL
from tqdm import tqdm

from dpdmd.shapes.world import IMAGE_SIZE, World
from dpdmd.utils.rng import torch_generator

LATENT_CHANNELS = 8
LATENT_SIZE = 8
KL_WEIGHT = 3e-4  # keeps some variance in the posterior, so that the decoder tolerates small errors of a sampler


def build_autoencoder() -> AutoencoderKL:
    """Build a small version of SD3.5's autoencoder: same blocks, four levels (factor 8), no quant convolutions."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=IMAGE_SIZE,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def train_autoencoder(
    seed: int,
    num_steps: int,
    world: World,
    start: AutoencoderKL | None = None,
    batch_size: int = 16,
    lr: float = 2e-3,
) -> AutoencoderKL:
    """Train on rendered scenes, from `start` if given, with squared and absolute error and a small KL term.

    Images are in [-1, 1]. `scaling_factor` and `shift_factor` are set from the measured moments of the latents.
    """
    torch.manual_seed(seed)
    vae = start or build_autoencoder()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=num_steps, pct_start=0.1)
    noise = torch_generator(seed, "autoencoder posterior")
    progress = tqdm(range(num_steps), desc="autoencoder")
    for step in progress:
        images = world.render([world.sample_scene(seed, step * batch_size + i) for i in range(batch_size)])
        x = torch.from_numpy(images) * 2 - 1
        with torch.autocast("cpu", torch.bfloat16):  # a third faster; the loss stays fp32
            posterior = vae.encode(x).latent_dist
            decoded = vae.decode(posterior.sample(noise)).sample
        error = decoded.float() - x
        reconstruction = error.square().mean() + 0.25 * error.abs().mean()
        loss = reconstruction + KL_WEIGHT * posterior.kl().float().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 0:
            progress.set_postfix(mse=f"{error.square().mean().item():.5f}", loss=f"{loss.item():.5f}")
    vae.eval().requires_grad_(False)
    latents = encode_scenes(vae, seed, range(10**7, 10**7 + 1024), world)
    vae.register_to_config(scaling_factor=float(1 / latents.std()), shift_factor=float(latents.mean()))
    return vae


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, seed: int, indices: range, world: World, batch_size: int = 64) -> torch.Tensor:
    """Return posterior means of scenes, unscaled: [N, LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE]."""
    encoded = []
    for start in tqdm(range(0, len(indices), batch_size), desc="encoding scenes", disable=len(indices) < 10_000):
        scenes = [world.sample_scene(seed, index) for index in indices[start : start + batch_size]]
        encoded.append(vae.encode(torch.from_numpy(world.render(scenes)) * 2 - 1).latent_dist.mean)
    return torch.cat(encoded)
