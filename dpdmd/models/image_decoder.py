"""Decoders of latents: the AutoencoderKL's, and a wrapper that keeps any decoder on the CPU between uses."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, ModelMixin
from torch import Tensor

from dpdmd.models.base import ImageDecoder
from dpdmd.models.loading import load_strict


class AutoencoderDecoder(ImageDecoder):
    """The decoder half of an autoencoder of the class `vae_class`, from a pipeline folder."""

    vae_class: type[ModelMixin]

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype):
        self.vae = load_strict(self.vae_class, folder / "vae", dtype).requires_grad_(False).to(device)


class KLImageDecoder(AutoencoderDecoder):
    """The decoder half of an AutoencoderKL."""

    vae_class = AutoencoderKL

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.vae.config.latent_channels, height // factor, width // factor

    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        raw = latents.to(self.vae.device) / self.vae.config.scaling_factor + (self.vae.config.shift_factor or 0)
        return self.vae.decode(raw.to(self.vae.dtype)).sample.float() / 2 + 0.5


class OffloadedDecoder(ImageDecoder):
    """A decoder that stays on the CPU between uses and decodes one image at a time: less memory, more copies.

    For images without gradient only: a backward pass would need the weights after they have left the device.
    """

    def __init__(self, decoder: ImageDecoder, device: torch.device):
        self.decoder, self.vae, self.device = decoder, decoder.vae, device
        self.vae.to("cpu")

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return self.decoder.latent_shape(height, width)

    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        self.vae.to(self.device)
        try:
            return torch.cat([self.decoder.decode_with_gradient(latent) for latent in latents.split(1)])
        finally:
            self.vae.to("cpu")
