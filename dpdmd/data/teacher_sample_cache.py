"""The pool of teacher samples: a fixed number of (prompt, start noise) pairs, and what the teacher makes of them.

Draws are named by the step, so teacher samples made ahead for every step of a run would be as many as the run has
samples. With `--teacher_cache_size N` the turns that look at the teacher's samples take their prompts and noises from N
pairs instead; `--teacher_cache DIR` stores what the teacher makes of them, in DIR/shard_<digest>.safetensors: `x`
[n, C, H, W] of up to SHARD_SIZE of them, fp32.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from dpdmd.data.cache_files import complete, is_whole, require_space, shard_path, write_shard
from dpdmd.data.prompts import prompts_of_step

SHARD_SIZE = 16
BYTES = 4  # of a number

Make = Callable[[Sequence[str], Sequence[int]], Tensor]  # prompts and pool entries -> the teacher's samples


@dataclass(frozen=True)
class PoolSettings:
    """All that the pool's samples depend on beside their prompts and places.

    Attributes:
        model: the teacher's pipeline folder.
        dtype: in which it computes.
        seed: of the start noises.
    """

    model: str
    dtype: str
    sigmas: tuple[float, ...]
    guidance_scale: float
    latent_shape: tuple[int, int, int]
    max_sequence_length: int
    no_t5: bool
    seed: int


@dataclass(frozen=True)
class Shard:
    """Pool entries that lie in one file, in this order, and their prompts."""

    path: Path
    entries: range
    prompts: tuple[str, ...]

    def is_whole(self) -> bool:
        return is_whole(self.path, {"x"})


def pool_prompts(prompts: Sequence[str], seed: int, size: int) -> list[str]:
    """Prompts of a pool's entries: each as often as any other, and the first ones those of the run's first batches."""
    return prompts_of_step(prompts, seed, 0, size, range(size))


def plan_shards(folder: Path, prompts: Sequence[str], settings: PoolSettings) -> list[Shard]:
    """The files of a pool with these prompts, whether they are there yet or not."""
    shards = []
    for start in range(0, len(prompts), SHARD_SIZE):
        part = tuple(prompts[start : start + SHARD_SIZE])
        entries = range(start, start + len(part))
        shards.append(Shard(shard_path(folder, [asdict(settings), start, part]), entries, part))
    return shards


def size_in_bytes(shards: Sequence[Shard], latent_shape: Sequence[int]) -> int:
    """What these shards take on disk."""
    return BYTES * sum(len(shard.prompts) for shard in shards) * torch.Size(latent_shape).numel()


class StoredSamples:
    """Answers from the shards, memory-mapped.

    Raises:
        ValueError: a shard is missing or not whole.
    """

    def __init__(self, shards: Sequence[Shard], device: torch.device):
        self.device = device
        self.files = []
        for shard in shards:
            if not shard.is_whole():
                raise ValueError(f"--teacher_cache: {shard.path} is missing or not whole; start the run again")
            self.files.append(safe_open(shard.path, framework="pt"))

    def __call__(self, entries: Sequence[int]) -> Tensor:
        """Samples [B, C, H, W] of B pool entries."""
        places = [divmod(entry, SHARD_SIZE) for entry in entries]
        return torch.cat([self.files[number].get_slice("x")[row : row + 1] for number, row in places]).to(self.device)


def _make_as_many(make: Make, shard: Shard, count: int) -> Tensor:
    """The shard's samples, its last made anew until `count` are: a sharded teacher is called in step on all ranks."""
    more = count - len(shard.prompts)
    made = make([*shard.prompts, *shard.prompts[-1:] * more], [*shard.entries, *[shard.entries[-1]] * more])
    return made[: len(shard.prompts)]


def stored_samples(
    folder: Path,
    prompts: Sequence[str],
    settings: PoolSettings,
    device: torch.device,
    make: Make,
    *,
    share: Callable[[list[Shard]], list[Shard]],
    wait: Callable[[], None],
    log: Callable[[str], None],
    progress: bool,
) -> StoredSamples:
    """The samples of a pool, completed first. Collective.

    Args:
        make: asks the teacher.
        share: this rank's part of a list, as long on every rank.
        wait: returns when every rank has come to it.
        log: takes a line for the log.

    Raises:
        ValueError: too little space, or a shard that cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(folder, prompts, settings)

    def make_missing(missing: list[Shard]) -> None:
        needed, count = size_in_bytes(missing, settings.latent_shape), sum(len(shard.prompts) for shard in missing)
        log(f"making {count} teacher samples in {folder}: {needed / 1e9:.3f} GB")
        require_space("--teacher_cache", folder, "the teacher samples", needed)
        longest = max(len(shard.prompts) for shard in missing)
        for shard in tqdm(share(missing), desc="teacher samples", unit="shard", disable=not progress):
            write_shard(shard.path, {"x": _make_as_many(make, shard, longest)})

    complete(shards, make_missing, wait)
    return StoredSamples(shards, device)
