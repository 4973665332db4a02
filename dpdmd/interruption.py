"""Signals that end a run early: the step is finished, a checkpoint saved, and the exit status says which it was.

SIGTERM comes from a scheduler that takes the machine back, SIGUSR1 from one that warns before it does, SIGINT from a
person. A second SIGINT does not wait.
"""

import signal
import threading
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interrupted(Exception):
    """A run ended early by a signal, all saved.

    Attributes:
        status: exit status, 128 + the signal's number, as shells count.
    """

    def __init__(self, number: int, step: int):
        name = signal.Signals(number).name
        super().__init__(f"{name}: saved at step {step}; --resume_from_checkpoint latest goes on")
        self.status = 128 + number


class StopSignals:
    """While entered, the first of SIGNALS is remembered instead of obeyed.

    Attributes:
        received: its number, 0 before.
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "StopSignals":
        # Only a process's main thread may answer signals; elsewhere they are whoever's who called.
        answered = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._remember) for number in answered}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number
