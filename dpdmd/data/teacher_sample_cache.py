"""The pool of teacher samples: a fixed number of prompts with start noise, and the teacher's sample of each, on disk.

Random draws are named by the step, so teacher samples for every step of a run would be as many as the run has samples.
With `--teacher_cache_size N`, updates that compare with the teacher's samples take prompts and noise from a pool of N
instead, and `--teacher_cache` stores the teacher's samples of this pool: `x` [rows, C, H, W], fp32.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dpdmd.data.tensor_cache import CacheFile, Maker, Processes, TensorCache

ROWS_PER_FILE = 16

Sample = Callable[[Sequence[str], Sequence[int]], Tensor]  # prompts and pool entries -> teacher samples [B, C, H, W]


@dataclass(frozen=True)
class PoolSettings:
    """Everything that the samples depend on, except their prompts and places in the pool.

    Attributes:
        model: `identity.cache_key` of the teacher.
        dtype: type in which the teacher computes.
        seed: seed of the start noise.
    """

    model: str
    dtype: str
    sigmas: tuple[float, ...]
    guidance_scale: float
    latent_shape: tuple[int, int, int]
    max_sequence_length: int
    no_t5: bool
    seed: int


def sample_cache(folder: Path, prompts: Sequence[str], settings: PoolSettings) -> TensorCache:
    """Return the cache of a pool with these prompts."""
    return TensorCache(
        flag="--teacher_cache",
        folder=folder,
        contents="teacher samples",
        names=("x",),
        prompts=prompts,
        rows_per_file=ROWS_PER_FILE,
        key=lambda start, part: [asdict(settings), start, part],
    )


def sample_maker(sample: Sample, latent_shape: Sequence[int], pool_size: int) -> Maker:
    """Return a function that samples the prompts of one cache file, always in batches of one size.

    A sharded teacher runs in lockstep on all ranks, so the last prompt of a short file is sampled repeatedly.
    """
    count = min(ROWS_PER_FILE, pool_size)

    def make(file: CacheFile) -> dict[str, Tensor]:
        rows = [min(row, len(file.rows) - 1) for row in range(count)]
        return {"x": sample([file.prompts[row] for row in rows], [file.rows[row] for row in rows])[: len(file.rows)]}

    return Maker(torch.Size(latent_shape).numel() * torch.float32.itemsize, make)


def stored_samples(
    folder: Path,
    prompts: Sequence[str],
    settings: PoolSettings,
    device: torch.device,
    sample: Sample,
    processes: Processes,
) -> Callable[[Sequence[int]], Tensor]:
    """Complete the cache of a pool. Collective.

    Returns:
        A function that reads the samples [B, C, H, W] of B pool entries.

    Raises:
        ValueError: the disk has too little space, or a file cannot be read.
    """
    maker = sample_maker(sample, settings.latent_shape, len(prompts))
    reader = sample_cache(folder, prompts, settings).complete(lambda: maker, processes, device)
    return partial(reader.read, "x")
