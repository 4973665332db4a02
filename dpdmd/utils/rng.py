"""Every random draw of the project: a generator made from (seed, purpose, indices), never from global state.

A draw that is a pure function of its names needs no saving, so a resumed run repeats it exactly, and a sample
that is named by its place in the global batch gets the same noise however the batch is split over processes.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from dpdmd.utils.device_transfer import to_device


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """63-bit seed of the draw called (seed, purpose, indices).

    Hashed rather than added, so that no two names of a run ever share a stream: `seed + rank` and
    `seed + step` collide, blake2b of the whole name does not.
    """
    name = ":".join([str(seed), purpose, *map(str, indices)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """CPU generator of one named draw; on the CPU so that every device gets the same numbers."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *indices))


def numpy_generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """NumPy twin of `torch_generator`."""
    return np.random.default_rng(derive_seed(seed, purpose, *indices))


def normal_per_sample(
    shape: Sequence[int], seed: int, purpose: str, step: int, samples: Sequence[int], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Standard normal noise, fp32, [len(samples), *shape]; row i depends on (seed, purpose, step, samples[i]) alone."""
    rows = [torch.randn(*shape, generator=torch_generator(seed, purpose, step, sample)) for sample in samples]
    return to_device(torch.stack(rows), device)


def integers_per_sample(
    high: int, seed: int, purpose: str, step: int, samples: Sequence[int], device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Uniform integers in [0, high), int64, [len(samples)]; entry i is named by (seed, purpose, step, samples[i])."""
    draws = [torch.randint(high, (), generator=torch_generator(seed, purpose, step, sample)) for sample in samples]
    return to_device(torch.stack(draws), device)
