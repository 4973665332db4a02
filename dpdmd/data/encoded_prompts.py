"""Prompts that are encoded once, so that the text encoders can leave memory before other networks come."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from dpdmd.models.base import TextEmbedding, TextEncoder
from dpdmd.utils.paths import check_free


class EncodedPrompts(TextEncoder):
    """The embeddings of some prompts. A prompt that was not encoded is a KeyError.

    They lie in a temporary file, since those of 10,000 prompts do not fit in memory: 2.7 MB each for SD3.5 in bf16.
    """

    def __init__(self, encoder: TextEncoder, prompts: Sequence[str], device: torch.device, *, progress: str = ""):
        """Encode the prompts one by one, each once, as `Sampler.sweep` does: an embedding depends on its batch.

        Args:
            device: where `encode` returns the embeddings.
            progress: label of a progress bar; "" for none.

        Raises:
            OSError: the file system of temporary files has too little space.
        """
        self._device = device
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed, and so deleted, with this object)
        self._stored: dict[str, dict[str, _Stored]] = {}
        unique, largest = list(dict.fromkeys(prompts)), 0
        for number, prompt in enumerate(tqdm(unique, desc=progress, disable=not progress)):
            tensors = encoder.encode([prompt]).to_cache()
            size = sum(tensor.nbytes for tensor in tensors.values())
            if size > largest:
                largest = size
                _check_space(largest, len(unique) - number)
            self._stored[prompt] = {name: self._write(tensor) for name, tensor in tensors.items()}
        self._file.flush()

    def encode(self, prompts: list[str]) -> TextEmbedding:
        rows = [
            TextEmbedding.from_cache({name: self._read(stored) for name, stored in self._stored[prompt].items()})
            for prompt in prompts
        ]
        return TextEmbedding.concatenate(rows).map(lambda tensor: tensor.to(self._device))

    def _write(self, tensor: Tensor) -> "_Stored":
        stored = _Stored(self._file.tell(), tensor.dtype, tuple(tensor.shape), tensor.nbytes)
        self._file.write(memoryview(tensor.contiguous().cpu().view(torch.uint8).numpy()))
        return stored

    def _read(self, stored: "_Stored") -> Tensor:
        content = bytearray(os.pread(self._file.fileno(), stored.size, stored.offset))
        return torch.frombuffer(content, dtype=stored.dtype).view(stored.shape)


class _Stored(NamedTuple):
    """Where a tensor lies in the file; offset and size in bytes."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    size: int


def _check_space(size: int, count: int) -> None:
    folder, remedy = tempfile.gettempdir(), "free some, or set TMPDIR to a folder on a larger disk"
    try:
        check_free(folder, Path(folder), count * size, f"the embeddings of {count} prompts", remedy)
    except ValueError as error:  # not an error of the command line
        raise OSError(str(error)) from None
