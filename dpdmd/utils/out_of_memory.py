"""Too little memory, told in one line that says what to lower. torch has an error of its own for a GPU's alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error is about full memory, of a GPU or of the CPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def first_line(error: RuntimeError) -> str:
    """torch's own first line about memory that is full.

    Raises:
        RuntimeError: it is about something else.
    """
    if not is_out_of_memory(error):
        raise error
    return str(error).partition("\n")[0]


@contextmanager
def message(advice: str) -> Iterator[None]:
    """Run what may need more memory than there is.

    Raises:
        MemoryError: it did; one line with `advice`.
    """
    try:
        yield
    except RuntimeError as error:
        raise MemoryError(f"out of memory; {advice} ({first_line(error)})") from None
