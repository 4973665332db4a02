"""The prompts of each step: a pure function of (seed, step, sample), so a resume needs no state."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np

from dpdmd.utils.rng import numpy_generator

Item = TypeVar("Item")
_HASHED = 65_536  # prompts that are joined at a time


@dataclass(frozen=True, eq=False)  # hashed by identity, so that `epoch_order` caches by it
class PromptWeights:
    """How often each of N prompts is drawn, relative to the others: `values` above 0, float64 [N]."""

    values: np.ndarray

    def draws_of_pass(self, offset: float) -> np.ndarray:
        """Return how often a pass of N draws contains each prompt, int64 [N].

        This is systematic sampling: N times the prompt's share of all weights, rounded down or up so that over uniform
        offsets in [0, 1) the mean is exact. Equal weights give 1 for every prompt.
        """
        number, sums = len(self.values), np.cumsum(self.values / self.values.max())
        ends = np.floor(sums * number / sums[-1] + offset)
        ends[-1] = number
        return np.diff(ends, prepend=0).astype(np.int64)


def fingerprint(prompts: Sequence[str], weights: PromptWeights | None = None) -> str:
    """Return a digest of a list of prompts, and of their weights if there are any."""
    digest = hashlib.blake2b(digest_size=8)
    for start in range(0, len(prompts), _HASHED):  # a join of all would be a second copy in memory
        digest.update(("\n" * bool(start) + "\n".join(prompts[start : start + _HASHED])).encode())
    if weights is not None:
        digest.update(b"\n\n" + weights.values.tobytes())  # no list of prompts ends like this
    return digest.hexdigest()


@lru_cache(maxsize=2)  # a batch may contain the end of one epoch and the start of the next
def epoch_order(num_prompts: int, seed: int, epoch: int, weights: PromptWeights | None = None) -> np.ndarray:
    """Return the shuffled order of the prompts in one epoch, with repeats and gaps if they have weights."""
    order = numpy_generator(seed, "prompt order", epoch).permutation(num_prompts)
    if weights is None:
        return order
    offset = numpy_generator(seed, "prompt weights", epoch).integers(2**20) / 2**20  # sums with it are exact
    return np.repeat(np.arange(num_prompts), weights.draws_of_pass(offset))[order]


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
    prompts: Sequence[Item],
    seed: int,
    step: int,
    global_batch_size: int,
    samples: Sequence[int],
    weights: PromptWeights | None = None,
) -> list[Item]:
    """Return the prompts of samples of a step's global batch, `step` counting those that draw prompts.

    An epoch is one pass over the prompts: as many draws as there are prompts, in a new order. Without `weights` it uses
    every prompt once.
    """
    number, places = len(prompts), [step * global_batch_size + sample for sample in samples]
    return [prompts[epoch_order(number, seed, place // number, weights)[place % number]] for place in places]


def pool_prompts(prompts: Sequence[str], seed: int, size: int, weights: PromptWeights | None = None) -> list[str]:
    """Return the prompts of a pool of teacher samples: those that the first `size` samples of a run would have."""
    return prompts_of_step(prompts, seed, 0, size, range(size), weights)
