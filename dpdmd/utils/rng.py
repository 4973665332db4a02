"""Random draws, each from a generator seeded by (seed, purpose, indices) and never from global state.

Such a draw has no state to save: a resumed run repeats it exactly. The draws of a sample are named by its place in the
global batch, so its noise does not depend on how the batch is divided over processes.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from dpdmd.utils.device_transfer import to_device


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """Return the 63-bit seed of the draw (seed, purpose, indices).

    The seed is a hash of the whole name. Sums such as `seed + rank` and `seed + step` would give two draws the same
    stream.
    """
    name = ":".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """Return the generator of a draw. It is on the CPU, so that all devices get the same numbers."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *indices))


def numpy_generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return the NumPy generator of a draw."""
    return np.random.default_rng(derive_seed(seed, purpose, *indices))


def weighted_index(weights: Sequence[float], seed: int, purpose: str, step: int) -> int:
    """Draw an index with probabilities in proportion to `weights`; it depends only on (seed, purpose, step)."""
    bounds = np.cumsum(weights)
    drawn = np.searchsorted(bounds, numpy_generator(seed, purpose, step).random() * bounds[-1], side="right")
    return min(int(drawn), len(bounds) - 1)  # a product may round up to the last bound


def normal_per_sample(
    shape: Sequence[int], seed: int, purpose: str, step: int, samples: Sequence[int], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw normal noise, fp32 [len(samples), *shape]. Row i depends only on (seed, purpose, step, samples[i])."""
    rows = [torch.randn(*shape, generator=torch_generator(seed, purpose, step, sample)) for sample in samples]
    return to_device(torch.stack(rows), device)


def mask_per_sample(
    rate: float,
    shape: Sequence[int],
    seed: int,
    purpose: str,
    indices: Sequence[int],
    samples: Sequence[int],
    device: torch.device,
) -> torch.Tensor:
    """Draw a mask that is true with probability `rate`, bool [len(samples), *shape].

    Row i depends only on (seed, purpose, indices, samples[i]) and on the kind of device: masks are as large as
    activations, so they are drawn on the device itself.
    """
    rows = []
    for sample in samples:
        generator = torch.Generator(device).manual_seed(derive_seed(seed, purpose, *indices, sample))
        rows.append(torch.rand(*shape, generator=generator, device=device) < rate)
    return torch.stack(rows)


def integers_per_sample(
    high: int, seed: int, purpose: str, step: int, samples: Sequence[int], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Draw integers in [0, high), int64 [len(samples)]. Entry i depends only on (seed, purpose, step, samples[i])."""
    draws = [torch.randint(high, (), generator=torch_generator(seed, purpose, step, sample)) for sample in samples]
    return to_device(torch.stack(draws), device)
