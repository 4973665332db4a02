"""Prompts that are encoded once, so that the text encoders can leave memory before other networks come."""

import os
import shutil
import tempfile
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from dpdmd.models.base import TextEmbedding, TextEncoder


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
        self._rows: dict[str, int] = {}
        unique = list(dict.fromkeys(prompts))
        for prompt in tqdm(unique, desc=progress, disable=not progress):
            text = encoder.encode([prompt])
            if not self._rows:
                self._context, self._pooled = (torch.empty_like(part, device="cpu") for part in _parts(text))
                self._check_space(len(unique))
            for part in _parts(text):
                self._file.write(memoryview(part.contiguous().cpu().view(torch.uint8).numpy()))
            self._rows[prompt] = len(self._rows)
        self._file.flush()

    def encode(self, prompts: list[str]) -> TextEmbedding:
        rows = [self._read(prompt) for prompt in prompts]
        context, pooled = (torch.cat(parts).to(self._device) for parts in zip(*rows, strict=True))
        return TextEmbedding(context, pooled)

    def _read(self, prompt: str) -> tuple[Tensor, ...]:
        """Return one prompt's context and pooled embedding, each with one row."""
        offset = self._rows[prompt] * self._row_bytes
        parts = []
        for like in (self._context, self._pooled):
            content = bytearray(os.pread(self._file.fileno(), like.nbytes, offset))
            parts.append(torch.frombuffer(content, dtype=like.dtype).view(like.shape))
            offset += like.nbytes
        return tuple(parts)

    @property
    def _row_bytes(self) -> int:
        return self._context.nbytes + self._pooled.nbytes

    def _check_space(self, count: int) -> None:
        folder, needed = tempfile.gettempdir(), count * self._row_bytes
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise OSError(
                f"{folder}: {free / 1e9:.2f} GB are free, but the embeddings of {count} prompts take about "
                f"{needed / 1e9:.2f} GB; free some, or set TMPDIR to a folder on a larger disk"
            )


def _parts(text: TextEmbedding) -> tuple[Tensor, Tensor]:
    return text.context, text.pooled
