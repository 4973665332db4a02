"""A discriminator that reads a diffusion network's own features (DMD2, section 4.3), and what it needs to be asked.

A small head on each of some blocks says of every token of a noised image whose it is, the teacher's or the student's.
Only the heads learn: in DMD2 the fake score's backbone learns with them, here it stays a score.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpdmd.models.base import Family, TextEmbedding
from dpdmd.utils.rng import torch_generator

WIDTH = 128  # of the heads; SD3.5-Medium's tokens have 1536
DEPTHS = (0.25, 0.5, 0.75)  # of the network, where the heads are


class Discriminator(nn.Module):
    """A head for each block: normalise, two layers, one logit a token."""

    def __init__(self, widths: Sequence[int], seed: int):
        """`widths`: numbers in a token of each block; weights are drawn from `seed`, biases start at 0."""
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
        """Logits [B, sum of T] of features [B, T, D] fp32 of each block; above 0 where the teacher's is likelier."""
        return torch.cat([head(part).squeeze(-1) for head, part in zip(self.heads, features, strict=True)], dim=1)


@dataclass(frozen=True)
class DiscriminatorContext:
    """A discriminator with the network whose features it reads.

    Attributes:
        heads: the discriminator itself.
        heads_forward: as the trainer calls it with gradient (wrapped or not).
        network: whose features; called as any, never trained by what the heads say.
        blocks: the blocks of it that the heads are on.
    """

    heads: nn.Module
    heads_forward: nn.Module
    network: nn.Module
    blocks: Sequence[nn.Module]

    def features(self, family: Family, z: Tensor, sigma: Tensor, text: TextEmbedding) -> list[Tensor]:
        """What the heads are shown of noised samples `z`, in the graph of `z`."""
        return family.features(self.network, self.blocks, z, sigma, text)


def choose_blocks(family: Family, network: nn.Module) -> list[nn.Module]:
    """Blocks at a quarter, half and three quarters of the network's depth; fewer where it has fewer."""
    blocks = family.feature_blocks(network)
    return [blocks[place] for place in sorted({round(depth * (len(blocks) - 1)) for depth in DEPTHS})]


@torch.no_grad()
def token_widths(
    family: Family, network: nn.Module, blocks: Sequence[nn.Module], null: TextEmbedding, latent_shape: Sequence[int]
) -> list[int]:
    """Numbers in a token of each of `blocks`, by asking the network once."""
    z, sigma = torch.zeros(1, *latent_shape, device=family.device), torch.ones(1, device=family.device)
    return [part.shape[-1] for part in family.features(network, blocks, z, sigma, null)]
