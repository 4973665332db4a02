"""Writing checkpoints while training goes on: one at a time, in a thread of rank 0."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from dpdmd.training.checkpoint import SaveError
from dpdmd.training.run_log import logger


class CheckpointWriter:
    """Writes what it is given in the background; while entered, nothing but a second interrupt leaves it unwritten.

    Attributes:
        failure: why a checkpoint could not be written, or None; nothing more is to be started then.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self._thread: threading.Thread | None = None

    def start(self, write: Callable[[], Path]) -> None:
        """Run `write`, which returns the path of a whole checkpoint; call it after `wait`."""
        # A daemon, so that a person who interrupts twice does not wait; what is half-written then is passed over.
        self._thread = threading.Thread(target=self._run, args=(write,), name="checkpoint writer", daemon=True)
        self._thread.start()

    def _run(self, write: Callable[[], Path]) -> None:
        try:
            logger.info("saved %s", write())
        except Exception as error:  # raised where the main thread can tell of it
            self.failure = error

    def wait(self) -> str | None:
        """Wait until nothing is being written; returns why a checkpoint could not be, or None.

        Raises:
            Exception: what writing raised, where it was no SaveError.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        if self.failure and not isinstance(self.failure, SaveError):
            raise self.failure
        return str(self.failure) if self.failure else None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._thread and kind is not KeyboardInterrupt:
            self._thread.join()
        if self.failure and error is not None and not isinstance(error, SaveError):
            logger.warning("%s", self.failure)  # something else ended the run
