"""Prompts encoded ahead: embeddings on disk, memory-mapped, so that text encoders need not stay, or even load.

DIR/shard_<digest>.safetensors holds `context` [n, L, D] and `pooled` [n, P] of up to SHARD_SIZE prompts; its name is a
digest of those prompts and of all that their embeddings depend on, so a cache serves any run it fits, is continued
where it was broken off, and is never mistaken for another. Whole embeddings are kept, padding included: SD3 attends to
it, and what T5 says of it depends on the prompt, so trimming would change the training.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from tqdm import tqdm

from dpdmd.data.cache_files import complete, is_whole, require_space, shard_path, write_shard
from dpdmd.models.base import TextEmbedding, TextEncoder
from dpdmd.utils.device_transfer import to_device

SHARD_SIZE = 64
BATCH_SIZE = 8


@dataclass(frozen=True)
class CacheSettings:
    """All that an embedding depends on beside its prompt.

    Attributes:
        model: the pipeline folder whose text encoders speak.
        dtype: in which they compute, and in which embeddings are kept.
        no_t5: they spoke without the T5.
    """

    model: str
    max_sequence_length: int
    dtype: str
    no_t5: bool = False


@dataclass(frozen=True)
class Shard:
    """Prompts that lie in one file, in this order."""

    path: Path
    prompts: tuple[str, ...]

    def is_whole(self) -> bool:
        return is_whole(self.path, {"context", "pooled"})


def plan_shards(folder: Path, prompts: Iterable[str], settings: CacheSettings) -> list[Shard]:
    """The files in which these prompts lie, whether they are there yet or not; the empty prompt comes with them."""
    known = sorted({"", *prompts})
    parts = [tuple(known[start : start + SHARD_SIZE]) for start in range(0, len(known), SHARD_SIZE)]
    return [Shard(shard_path(folder, [asdict(settings), part]), part) for part in parts]


def size_in_bytes(shards: Sequence[Shard], example: TextEmbedding) -> int:
    """What these shards take on disk, by the size of one embedding."""
    one = sum(value.numel() * value.element_size() for value in (example.context, example.pooled)) // len(example)
    return one * sum(len(shard.prompts) for shard in shards)


def check_space(folder: Path, needed: int) -> None:
    """Compare with what the disk has.

    Raises:
        ValueError: too little.
    """
    require_space("--cache_text_embeddings", folder, "the embeddings", needed)


def write_shards(encoder: TextEncoder, shards: Sequence[Shard], *, progress: bool) -> None:
    """Encode and write each shard under a temporary name, then rename it."""
    with tqdm(total=sum(len(s.prompts) for s in shards), desc="encoding prompts", disable=not progress) as bar:
        for shard in shards:
            parts = []
            for start in range(0, len(shard.prompts), BATCH_SIZE):
                parts.append(encoder.encode(list(shard.prompts[start : start + BATCH_SIZE])))
                bar.update(len(parts[-1]))
            tensors = {
                "context": torch.cat([part.context for part in parts]),
                "pooled": torch.cat([part.pooled for part in parts]),
            }
            write_shard(shard.path, tensors)


class CachedTextEncoder(TextEncoder):
    """Answers from the shards; a prompt that is not among them is refused.

    Raises:
        ValueError: a shard is missing or not whole.
    """

    def __init__(self, shards: Sequence[Shard], device: torch.device):
        self.device = device
        self.place: dict[str, tuple[int, int]] = {}
        self.files = []
        for number, shard in enumerate(shards):
            if not shard.is_whole():
                raise ValueError(f"--cache_text_embeddings: {shard.path} is missing or not whole; start the run again")
            self.files.append(safe_open(shard.path, framework="pt"))  # memory-mapped: rows are read when asked for
            self.place |= {prompt: (number, row) for row, prompt in enumerate(shard.prompts)}

    def encode(self, prompts: list[str]) -> TextEmbedding:
        context, pooled = self._rows("context", prompts), self._rows("pooled", prompts)
        return TextEmbedding(context, pooled)

    def _rows(self, name: str, prompts: list[str]) -> Tensor:
        rows = []
        for prompt in prompts:
            number, row = self.place[prompt]
            rows.append(self.files[number].get_slice(name)[row : row + 1])
        return to_device(torch.cat(rows), self.device)


def cached_encoder(
    folder: Path,
    prompts: Iterable[str],
    settings: CacheSettings,
    device: torch.device,
    load: Callable[[], TextEncoder],
    *,
    rank: int,
    processes: int,
    wait: Callable[[], None],
    log: Callable[[str], None],
) -> CachedTextEncoder:
    """The cache of these prompts, completed first; encoders are loaded only where something is missing. Collective.

    Args:
        load: the text encoders, to be dropped afterwards.
        wait: returns when every rank has come to it.
        log: takes a line for the log.

    Raises:
        ValueError: too little space, or a shard that cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = plan_shards(folder, prompts, settings)

    def encode_missing(missing: list[Shard]) -> None:
        encoder = load()
        needed, count = size_in_bytes(missing, encoder.encode([""])), sum(len(shard.prompts) for shard in missing)
        log(f"encoding {count} prompts into {folder}: {needed / 1e9:.3f} GB")
        check_space(folder, needed)
        write_shards(encoder, missing[rank::processes], progress=rank == 0)

    complete(shards, encode_missing, wait)
    return CachedTextEncoder(shards, device)
