"""The error of too little memory: one line that says what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is about full memory, of a GPU or of the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@contextmanager
def explained(advice: str) -> Iterator[None]:
    """Turn every out-of-memory error of the block into a `MemoryError` of one line.

    Args:
        advice: what to lower.

    Raises:
        MemoryError: the block needs more memory than there is.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise MemoryError(f"out of memory; {advice} ({reason})") from None
