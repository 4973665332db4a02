"""A moving average of a network's weights: a second, smoother student."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dpdmd.distributed import sharding


class MovingAverage:
    """decay x average + (1 - decay) x weights after each update, in the weights' own type (fp32 masters).

    It starts at the current weights. For a sharded network each process averages its own shard.
    """

    def __init__(self, network: nn.Module, parameters: Sequence[nn.Parameter], decay: float):
        self.network, self.parameters, self.decay = network, parameters, decay
        self.averages = [weights.clone() for weights in self._weights()]

    def _weights(self) -> list[Tensor]:
        # `data`: autograd must not see the exchange, which is undone before any waiting graph runs backward.
        plain = [parameter.data for parameter in self.parameters]
        return [weights.to_local() if isinstance(weights, DTensor) else weights for weights in plain]

    @torch.no_grad()
    def update(self, share: Tensor | float = 1.0) -> None:
        """Move the average toward the weights; `share` is 0 for a skipped update, which changes nothing."""
        for average, weights in zip(self.averages, self._weights(), strict=True):
            average += (weights - average) * ((1 - self.decay) * share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the averages in place of the weights; the weights return afterwards, bit for bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        sharding.reshard(self.network)
        for average, weights in zip(self.averages, self._weights(), strict=True):
            kept = weights.clone()
            weights.copy_(average)
            average.copy_(kept)
