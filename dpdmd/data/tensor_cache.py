"""A cache of tensors on disk, shared by runs: text embeddings and teacher samples.

FOLDER/shard_<digest>.safetensors holds up to `rows_per_file` rows of each tensor, one row for each prompt. The digest
covers everything that the rows depend on, so a cache is only read by runs that it fits. A run makes the files that are
missing, for example because an earlier run was killed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import NamedTemporaryFile
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
        gather: value of one process -> values of all, in the order of their ranks, when all have called it.
    """

    rank: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]

    def attempt(self, function: Callable[[], Any]) -> tuple[Any, list[Exception | None]]:
        """Return the function's result, and the error of each process or None. Collective."""
        result, error = None, None
        try:
            result = function()
        except (ValueError, OSError) as raised:
            error = raised
        return result, self.gather(error)

    def call(self, function: Callable[[], None]) -> None:
        """Call a function on every process. Collective.

        Raises:
            ValueError, OSError: raised by `function` on a process; every process raises that of the first one.
        """
        for error in self.attempt(function)[1]:
            if error is not None:
                raise error


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
            ValueError: the disk has too little space, is read-only or not shared, a file cannot be read, or a row is
                not finite. Every process raises it.
        """
        processes.call(self._prepare_folder)
        missing = [file for file in self.files if not self.is_complete(file)]
        # What rank 0 misses: others may already see a file that a process of another run has just written.
        names = set(processes.gather([file.path.name for file in missing])[0])
        if missing := [file for file in self.files if file.path.name in names]:
            processes.call(lambda: self._check_writable(missing))
            if processes.count > 1:
                self._check_shared(processes)
            self._make(missing, prepare(), processes)
        return self._open(processes, device)

    def _prepare_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers([self.folder])

    def _check_writable(self, missing: list[CacheFile]) -> None:
        try:
            check_writable(self.flag, self.folder)
        except ValueError as error:
            files = f"{len(missing)} of {len(self.files)} files with {self.contents}"
            raise ValueError(f"{error}, and this run needs to add {files}") from None

    def _check_shared(self, processes: Processes) -> None:
        """Check that all processes see a file that rank 0 makes, before the hours that missing files may take."""
        with ExitStack() as opened:
            trial = None
            if processes.rank == 0:
                trial = opened.enter_context(NamedTemporaryFile(dir=self.folder, prefix=".", suffix=".trial")).name
            name = Path(processes.gather(trial)[0]).name
            if not all(processes.gather((self.folder / name).exists())):
                raise self._not_shared()

    def _not_shared(self) -> ValueError:
        return ValueError(
            f"{self.flag} {self.folder}: not all processes see the same files there; give a folder on a disk that all "
            "machines share"
        )

    def _make(self, missing: list[CacheFile], maker: Maker, processes: Processes) -> None:
        rows = sum(len(file.rows) for file in missing)
        needed = rows * maker.row_bytes
        logger.info("making %d %s in %s: %.3f GB", rows, self.contents, self.folder, needed / 1e9)
        place, remedy = f"{self.flag} {self.folder}", "free some, or give another folder"
        processes.call(lambda: check_free(place, self.folder, needed, f"the {self.contents}", remedy))
        mine = collectives.share(missing, processes.rank, processes.count)
        total = sum(len(file.rows) for file in mine)
        with tqdm(total=total, desc=self.contents, disable=processes.rank != 0) as bar:
            for file in mine:
                tensors = {name: value.cpu().contiguous() for name, value in maker.make(file).items()}
                processes.call(partial(self._write, file, tensors))
                bar.update(len(file.rows))

    def _write(self, file: CacheFile, tensors: dict[str, Tensor]) -> None:
        for value in tensors.values():
            finite = value.isfinite().reshape(len(value), -1).all(1)
            if not finite.all():
                prompt = file.prompts[finite.tolist().index(False)]
                raise ValueError(
                    f"{self.flag}: the {self.contents} of {prompt!r} are not finite, so they are not stored; get the "
                    "weights of --teacher_id again, or let it compute in another precision"
                )
        with replacing(file.path) as opened:
            opened.write(save(tensors))

    def _open(self, processes: Processes, device: torch.device) -> "CacheReader":
        reader, errors = processes.attempt(lambda: CacheReader(self, device))
        if error := next(filter(None, errors), None):
            raise self._not_shared() if None in errors else error
        return reader


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
