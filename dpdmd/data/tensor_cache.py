"""A cache of tensors on disk, shared by runs: text embeddings and teacher samples.

FOLDER/shard_<digest>.safetensors holds up to `rows_per_file` rows of each tensor, one row for each prompt. The digest
covers everything that the rows depend on, so a cache is only read by runs that it fits. A run makes the files that are
missing, for example because an earlier run was killed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from dpdmd.distributed import collectives
from dpdmd.models.weight_files import read_shapes
from dpdmd.utils.atomic_files import clear_leftovers, replacing
from dpdmd.utils.device_transfer import to_device
from dpdmd.utils.logging import logger
from dpdmd.utils.paths import check_free, check_writable


@dataclass(frozen=True)
class Processes:
    """The processes that complete a cache together.

    Attributes:
        wait: returns when all processes have called it.
    """

    rank: int = 0
    count: int = 1
    wait: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class CacheFile:
    """One file: its path, the rows of the cache that it holds, and the prompts of these rows."""

    path: Path
    rows: range
    prompts: tuple[str, ...]


@dataclass(frozen=True)
class Maker:
    """Makes the rows of a file.

    Attributes:
        row_bytes: size of one row of all tensors.
        make: file -> its tensors by name, [len(file.rows), ...].
    """

    row_bytes: int
    make: Callable[[CacheFile], dict[str, Tensor]]


@dataclass(frozen=True)
class TensorCache:
    """One row of each tensor for each prompt.

    Attributes:
        flag: flag that gives the folder; errors begin with it.
        contents: what the rows are, for messages.
        names: names of the tensors.
        prompts: prompt of each row.
        key: first row and prompts of a file -> everything that its content depends on, as JSON values.
    """

    flag: str
    folder: Path
    contents: str
    names: tuple[str, ...]
    prompts: Sequence[str]
    rows_per_file: int
    key: Callable[[int, tuple[str, ...]], Any]

    @cached_property
    def files(self) -> list[CacheFile]:
        """All files in the order of their rows, whether they exist or not."""
        starts = range(0, len(self.prompts), self.rows_per_file)
        return [self._file(start, tuple(self.prompts[start : start + self.rows_per_file])) for start in starts]

    def _file(self, start: int, prompts: tuple[str, ...]) -> CacheFile:
        content = json.dumps(self.key(start, prompts), sort_keys=True)
        digest = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
        return CacheFile(self.folder / f"shard_{digest}.safetensors", range(start, start + len(prompts)), prompts)

    def is_complete(self, file: CacheFile) -> bool:
        """Return whether a file exists, is not truncated, and holds the tensors of this cache."""
        try:
            return set(read_shapes(file.path)) == set(self.names)
        except ValueError:
            return False

    def complete(self, prepare: Callable[[], Maker], processes: Processes, device: torch.device) -> "CacheReader":
        """Make the missing files, divided among the processes, and open the cache. Collective.

        Args:
            prepare: called on every process if a file is missing.
            device: where the rows are read to.

        Raises:
            ValueError: the disk has too little space or is read-only, or a file cannot be read.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers([self.folder])
        missing = [file for file in self.files if not self.is_complete(file)]
        processes.wait()  # otherwise a process could find files that another has just written, and miss the collectives
        if missing:
            self._check_writable(missing)
            self._make(missing, prepare(), processes)
        processes.wait()
        return CacheReader(self, device)

    def _check_writable(self, missing: list[CacheFile]) -> None:
        try:
            check_writable(self.flag, self.folder)
        except ValueError as error:
            files = f"{len(missing)} of {len(self.files)} files with {self.contents}"
            raise ValueError(f"{error}, and this run needs to add {files}") from None

    def _make(self, missing: list[CacheFile], maker: Maker, processes: Processes) -> None:
        rows = sum(len(file.rows) for file in missing)
        needed = rows * maker.row_bytes
        logger.info("making %d %s in %s: %.3f GB", rows, self.contents, self.folder, needed / 1e9)
        remedy = "free some, or give another folder"
        check_free(f"{self.flag} {self.folder}", self.folder, needed, f"the {self.contents}", remedy)
        mine = collectives.share(missing, processes.rank, processes.count)
        total = sum(len(file.rows) for file in mine)
        with tqdm(total=total, desc=self.contents, disable=processes.rank != 0) as bar:
            for file in mine:
                tensors = {name: value.cpu().contiguous() for name, value in maker.make(file).items()}
                with replacing(file.path) as opened:
                    opened.write(save(tensors))
                bar.update(len(file.rows))


class CacheReader:
    """Reads rows of a complete cache. The files are memory-mapped: a row is read from disk when it is needed.

    Raises:
        ValueError: a file is missing or broken.
    """

    def __init__(self, cache: TensorCache, device: torch.device):
        self.cache, self.device = cache, device
        if broken := next((file.path for file in cache.files if not cache.is_complete(file)), None):
            raise ValueError(f"{cache.flag}: {broken} is missing or incomplete; start the run again")
        self._files = [safe_open(file.path, framework="pt") for file in cache.files]

    def row(self, row: int) -> dict[str, Tensor]:
        """Return one row of every tensor, each [1, ...], on the CPU."""
        number, place = divmod(row, self.cache.rows_per_file)
        return {name: self._files[number].get_slice(name)[place : place + 1] for name in self.cache.names}

    def read(self, name: str, rows: Sequence[int]) -> Tensor:
        """Return rows of a tensor, [len(rows), ...], on the device."""
        return to_device(torch.cat([self.row(row)[name] for row in rows]), self.device)
