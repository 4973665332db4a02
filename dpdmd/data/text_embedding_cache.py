"""Text embeddings of all prompts of a run, encoded ahead and kept on disk, so that the text encoders can leave memory.

Embeddings of one length are stored with their padding. SD3 attends to the padding, and T5's output there depends on the
prompt, so trimmed embeddings would change the training. Embeddings of different lengths are stored with their lengths.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dpdmd.data.tensor_cache import CacheFile, CacheReader, Maker, Processes, TensorCache
from dpdmd.models.base import TextEmbedding, TextEncoder
from dpdmd.utils.device_transfer import to_device

ROWS_PER_FILE = 64
BATCH_SIZE = 8


@dataclass(frozen=True)
class EmbeddingSettings:
    """Everything that an embedding depends on, except its prompt.

    Attributes:
        model: `identity.cache_key` of the pipeline with the text encoders.
        dtype: type in which the encoders compute and the embeddings are stored.
        no_t5: whether the T5 encoder was left out.
    """

    model: str
    max_sequence_length: int
    dtype: str
    no_t5: bool = False


def embedding_cache(
    folder: Path,
    prompts: Iterable[str],
    settings: EmbeddingSettings,
    names: Sequence[str] = ("context", "pooled"),
    evaluated: Iterable[str] = (),
) -> TensorCache:
    """Return the cache of these prompts and of the empty prompt.

    Args:
        names: the tensors of an embedding (`TextEmbedding.to_cache`).
        evaluated: prompts that follow in their own order. Others or more of them leave the files of `prompts` but the
            last as they are, which sorting them among these would not.
    """
    trained = sorted({"", *prompts})
    known = set(trained)
    return TensorCache(
        flag="--cache_text_embeddings",
        folder=folder,
        contents="text embeddings",
        names=tuple(names),
        prompts=trained + [prompt for prompt in dict.fromkeys(evaluated) if prompt not in known],
        rows_per_file=ROWS_PER_FILE,
        key=lambda _, part: [asdict(settings), part],
    )


def embedding_maker(encoder: TextEncoder, longest: str = "") -> Maker:
    """Return what encodes the prompts of a file; `longest` gives the size of a row if prompts differ in length."""

    def make(file: CacheFile) -> dict[str, torch.Tensor]:
        starts = range(0, len(file.prompts), BATCH_SIZE)
        parts = [encoder.encode(list(file.prompts[start : start + BATCH_SIZE])) for start in starts]
        return TextEmbedding.concatenate(parts).to_cache()

    example = encoder.encode([""])
    if example.lengths is not None:
        example = encoder.encode([longest])
    return Maker(sum(value.nbytes for value in example.to_cache().values()), make)


class CachedTextEncoder(TextEncoder):
    """Returns embeddings from the cache. A prompt that is not in the cache is a KeyError."""

    def __init__(self, reader: CacheReader):
        self._reader = reader
        self._rows = {prompt: row for row, prompt in enumerate(reader.cache.prompts)}

    def encode(self, prompts: list[str]) -> TextEmbedding:
        # Row by row: in a file, contexts have the length of the file's longest prompt.
        parts = [TextEmbedding.from_cache(self._reader.row(self._rows[prompt])) for prompt in prompts]
        return TextEmbedding.concatenate(parts).map(lambda value: to_device(value, self._reader.device))


def cached_encoder(
    folder: Path,
    prompts: Iterable[str],
    settings: EmbeddingSettings,
    device: torch.device,
    load: Callable[[], TextEncoder],
    processes: Processes,
    names: Sequence[str] = ("context", "pooled"),
    evaluated: Iterable[str] = (),
) -> CachedTextEncoder:
    """Complete the cache of these prompts, and return an encoder that reads it. Collective.

    Args:
        load: loads the text encoders; called only if embeddings are missing.
        names, evaluated: as in `embedding_cache`.

    Raises:
        ValueError: the disk has too little space, or a file cannot be read.
    """
    cache = embedding_cache(folder, prompts, settings, names, evaluated)
    longest = max(cache.prompts, key=len)
    return CachedTextEncoder(cache.complete(lambda: embedding_maker(load(), longest), processes, device))
