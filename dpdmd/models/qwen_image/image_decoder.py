"""The decoder of Qwen-Image's video autoencoder."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from dpdmd.models.image_decoder import AutoencoderDecoder


class QwenImageDecoder(AutoencoderDecoder):
    """The decoder half of an AutoencoderKLQwenImage, for videos of one frame."""

    vae_class = AutoencoderKLQwenImage

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        super().__init__(folder, device, dtype)
        mean, deviation = self.vae.config.latents_mean, self.vae.config.latents_std
        self.mean, self.deviation = (torch.tensor(each, device=device)[:, None, None] for each in (mean, deviation))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.vae.spatial_compression_ratio
        return self.vae.config.z_dim, height // factor, width // factor

    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        raw = latents.to(self.vae.device) * self.deviation + self.mean
        frames = raw.to(self.vae.dtype)[:, :, None]
        # vae.decode clamps its output to -1 to 1, which has no gradient beyond.
        return self.vae.decoder(self.vae.post_quant_conv(frames))[:, :, 0].float() / 2 + 0.5
