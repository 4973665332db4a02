"""The error of too little memory: one line that says what to lower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

CPU_MESSAGE = "can't allocate memory"  # torch has an error class for a full GPU, but not for a full CPU


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
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and CPU_MESSAGE not in str(error):
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise MemoryError(f"out of memory; {advice} ({reason})") from None
