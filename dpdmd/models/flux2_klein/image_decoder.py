"""The decoder of FLUX.2's autoencoder."""

from diffusers import AutoencoderKLFlux2
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from dpdmd.models.flux2_klein.layout import FACTOR, PATCH
from dpdmd.models.image_decoder import AutoencoderDecoder


class Flux2ImageDecoder(AutoencoderDecoder):
    """The decoder half of an AutoencoderKLFlux2.

    Latents of the sampler [B, 128, H / 16, W / 16] are 2 x 2 patches of the autoencoder's latents, each channel
    normalised by the running mean and variance of the batch norm in the autoencoder's file.
    """

    vae_class = AutoencoderKLFlux2

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return PATCH**2 * self.vae.config.latent_channels, height // FACTOR, width // FACTOR

    def decode_with_gradient(self, latents: Tensor) -> Tensor:
        norm = self.vae.bn
        deviation = (norm.running_var.float() + self.vae.config.batch_norm_eps).sqrt()
        patches = latents.to(self.vae.device) * deviation[:, None, None] + norm.running_mean.float()[:, None, None]
        return self.vae.decode(pixel_shuffle(patches, PATCH).to(self.vae.dtype)).sample.float() / 2 + 0.5
