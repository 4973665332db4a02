"""A discriminator on the features of a diffusion network (DMD2, section 4.3).

A small head on each of some blocks predicts for every token of a noised sample whether the sample is the teacher's or
the student's. Only the heads are trained. In DMD2 the fake score's network learns with them; here it stays a score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpdmd.models.base import Family, TextEmbedding
from dpdmd.utils.rng import torch_generator

WIDTH = 128  # of the heads; tokens of SD3.5-Medium have width 1536
DEPTHS = (0.25, 0.5, 0.75)  # positions of the heads, as fractions of the network's depth


class Discriminator(nn.Module):
    """One head for each block: layer norm, two linear layers, one logit for each token."""

    def __init__(self, widths: Sequence[int], seed: int):
        """`widths`: token width of each block. Weights are drawn from `seed`; biases start at 0."""
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1))
            for width in widths
        )
        for name, parameter in self.heads.named_parameters():
            if parameter.ndim == 2:
                nn.init.kaiming_uniform_(parameter, 5**0.5, generator=torch_generator(seed, f"discriminator {name}"))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits [B, sum of T], above 0 for "teacher", of the blocks' features, each [B, T, D] fp32."""
        return torch.cat([head(part).squeeze(-1) for head, part in zip(self.heads, features, strict=True)], dim=1)


@dataclass(frozen=True)
class DiscriminatorContext:
    """A discriminator, and the network that computes its features.

    Attributes:
        heads: the discriminator.
        heads_forward: the discriminator to call with gradient, wrapped or not.
        network: the network whose features are used; the discriminator's loss does not train it.
        blocks: the blocks of `network` that have a head.
    """

    heads: nn.Module
    heads_forward: nn.Module
    network: nn.Module
    blocks: Sequence[nn.Module]

    def features(self, family: Family, z: Tensor, sigma: Tensor, text: TextEmbedding) -> list[Tensor]:
        """Return each block's features [B, T, D] of the noised samples `z`, in the graph of `z`."""
        return family.features(self.network, self.blocks, z, sigma, text)


def choose_blocks(family: Family, network: nn.Module) -> list[nn.Module]:
    """Return the blocks at `DEPTHS` of the network; fewer if the network has fewer blocks."""
    blocks = family.feature_blocks(network)
    return [blocks[index] for index in sorted({round(depth * (len(blocks) - 1)) for depth in DEPTHS})]


@torch.no_grad()
def token_widths(
    family: Family, network: nn.Module, blocks: Sequence[nn.Module], null: TextEmbedding, latent_shape: Sequence[int]
) -> list[int]:
    """Return the token width of each of `blocks`, measured by one call of the network."""
    z, sigma = torch.zeros(1, *latent_shape, device=family.device), torch.ones(1, device=family.device)
    return [part.shape[-1] for part in family.features(network, blocks, z, sigma, null)]
