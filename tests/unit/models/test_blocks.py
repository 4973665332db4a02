"""The blocks of a network in several numbered lists, and the image's tokens among a block's outputs."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from dpdmd.models.registry import LAYOUTS, family_class


class Block(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Network(nn.Module):
    """Calls `first` before `last`, though it registers `last` first."""

    def __init__(self):
        super().__init__()
        self.config = {}
        self.last = nn.ModuleList(Block() for _ in range(3))
        self.first = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for block in [*self.first, *self.last]:
            x = block(x)
        return x


class Listed(family_class("sd35")):
    layout = replace(LAYOUTS["sd35"], blocks=lambda _: {"first.": 2, "last.": 3})

    def predict(self, network, z, sigma, text):
        return network(z)

    def image_tokens(self, output, z, text):
        return output[:, : z.shape[1] // 2]


def test_blocks_of_several_lists_come_in_the_order_of_a_call():
    network, family = Network(), Listed(torch.device("cpu"), torch.float32)
    blocks = family.blocks(network)
    assert blocks == [*network.first, *network.last]
    z = torch.zeros(2, 4, 3)
    features = family.features(network, blocks, z, torch.ones(2), None)
    assert [each.unique().tolist() for each in features] == [[1], [2], [3], [4], [5]]
    assert all(each.shape == (2, 2, 3) for each in features)  # what the family says is the image's
