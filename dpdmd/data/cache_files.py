"""Files of a cache: named by a digest of all that their content depends on, whole or not there."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from safetensors.torch import save
from torch import Tensor

from dpdmd.models.weight_files import read_shapes
from dpdmd.utils.atomic_files import clear_leftovers, replacing

AnyShard = TypeVar("AnyShard", bound="Shard")


def shard_path(folder: Path, content: Any) -> Path:
    """Where the file lies whose tensors depend on `content` (anything that JSON can hold) and on nothing else."""
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
    return folder / f"shard_{digest}.safetensors"


def is_whole(path: Path, names: set[str]) -> bool:
    """Whether the file is there, as it was written, with tensors of these `names`."""
    try:
        return set(read_shapes(path)) == names
    except ValueError:
        return False


def write_shard(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file so that a reader never meets half of it."""
    with replacing(path) as file:
        file.write(save({name: value.cpu().contiguous() for name, value in tensors.items()}))


class Shard(Protocol):
    """A file of a cache."""

    @property
    def path(self) -> Path: ...

    def is_whole(self) -> bool: ...


def complete(shards: Sequence[AnyShard], make: Callable[[list[AnyShard]], None], wait: Callable[[], None]) -> None:
    """Let `make` write the shards that are not whole. Collective: all ranks look before one writes, and all wait."""
    clear_leftovers({shard.path.parent for shard in shards})
    missing = [shard for shard in shards if not shard.is_whole()]
    wait()
    if missing:
        make(missing)
    wait()


def require_space(flag: str, folder: Path, what: str, needed: int) -> None:
    """Compare the bytes `needed` with what the disk has.

    Raises:
        ValueError: too little; the message names `flag`.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"{flag} {folder}: {what} take {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")
