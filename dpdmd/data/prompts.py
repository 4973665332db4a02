"""The prompts of each step: a pure function of (seed, step, sample), so a resume needs no state."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np

from dpdmd.utils.rng import numpy_generator

Item = TypeVar("Item")


def fingerprint(prompts: Sequence[str]) -> str:
    """Return a digest of a list of prompts."""
    return hashlib.blake2b("\n".join(prompts).encode(), digest_size=8).hexdigest()


@lru_cache(maxsize=2)  # a batch may contain the end of one epoch and the start of the next
def epoch_order(num_prompts: int, seed: int, epoch: int) -> np.ndarray:
    """Return the shuffled order of the prompts in one epoch."""
    return numpy_generator(seed, "prompt order", epoch).permutation(num_prompts)


def global_samples(global_batch_size: int, num_processes: int, rank: int) -> range:
    """Return the samples of a global batch that a process computes: one contiguous share.

    Raises:
        ValueError: the batch size is not a multiple of the number of processes.
    """
    if global_batch_size % num_processes:
        raise ValueError(f"a global batch of {global_batch_size} does not divide over {num_processes} processes")
    share = global_batch_size // num_processes
    return range(rank * share, (rank + 1) * share)


def prompts_of_step(
    prompts: Sequence[Item], seed: int, step: int, global_batch_size: int, samples: Sequence[int]
) -> list[Item]:
    """Return the prompts of samples of a step's global batch. Each epoch uses every prompt once, in a new order."""
    places = [step * global_batch_size + sample for sample in samples]
    return [prompts[epoch_order(len(prompts), seed, place // len(prompts))[place % len(prompts)]] for place in places]


def pool_prompts(prompts: Sequence[str], seed: int, size: int) -> list[str]:
    """Return the prompts of a pool of teacher samples: those that the first `size` samples of a run would have."""
    return prompts_of_step(prompts, seed, 0, size, range(size))
