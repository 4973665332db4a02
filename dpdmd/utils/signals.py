"""Signals that end a program early: one line, exit status 128 + the signal's number, nothing half-written left.

SIGTERM comes from a scheduler that takes the machine back, SIGUSR1 from one that warns before it does, SIGINT from a
person. Training finishes its step and saves a checkpoint first (`StopSignals`); a second SIGINT does not wait. Every
other program, and training while it loads, ends at once (`answer`). Imports nothing heavy: it comes before what does.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType

STDERR = 2
LAUNCHED = "TORCHELASTIC_RUN_ID"  # in the environment of what torch's launcher starts
PR_SET_PDEATHSIG = 1  # of Linux's prctl
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_unfinished: set[Path] = set()


@contextmanager
def delete_on_failure(path: Path) -> Iterator[Path]:
    """While entered, `path` is a half-written file or folder: it goes if the block fails or a signal ends the program.

    What the block has renamed is not there any more, and stays.
    """
    _unfinished.add(path)
    try:
        yield path
    except BaseException:
        _delete(path)
        raise
    finally:
        _unfinished.discard(path)


def _delete(path: Path) -> None:
    with suppress(OSError):  # it may not be there yet, or no longer; why the block failed is what is to be told
        if path.is_dir() and not path.is_symlink():
            import shutil  # and with it three compressions, which would come before a program can answer

            shutil.rmtree(path)
        else:
            path.unlink()


def install_exit_handlers(program: str) -> None:
    """From here on the first of SIGNALS ends this process, wherever it is: for a program's first line, no function's.

    Python's own answer to SIGINT is an exception, which libraries swallow while they are imported, in threads and in
    callbacks, or tell with a traceback; and a process group that is still joined aborts an interpreter that ends in
    order. So the process ends here, with one line.
    """

    ending = threading.Lock()

    def end(number: int, frame: FrameType | None) -> None:
        if not ending.acquire(blocking=False):
            return  # a launcher sends a second one, and people press twice
        for path in list(_unfinished):
            _delete(path)
        line = f"{program}: stopped: {signal.Signals(number).name}; what was written before is whole\n"
        with suppress(OSError):  # nobody may be listening any more
            # Not print: the signal may have come while it wrote.
            os.write(STDERR, (("\n" if _draws_bar() else "") + line).encode())
        os._exit(128 + number)

    def watch() -> None:
        """Python hands signals to the main thread alone, which may be waiting inside torch for another process."""
        while True:
            for number in os.read(heard, 1):
                if signal.getsignal(number) is end:
                    end(number, None)

    heard, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()
    for number in SIGNALS:
        signal.signal(number, end)
    _follow_launcher()


def _follow_launcher() -> None:
    """Get SIGTERM when the launcher is killed: else its processes would train on, and refuse the folder to the next."""
    if LAUNCHED not in os.environ or not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # it was killed before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def ignore_signals() -> None:
    """From here on no signal but SIGKILL ends this process: for one that is telling how it ended."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def final_status(status: int) -> int:
    """The exit status of a program that has done its work: a signal that comes while Python tidies up changes nothing.

    Python gives signals back to the system then, and the process would end without a word.
    """
    ignore_signals()
    return status


def _draws_bar() -> bool:
    """Whether a progress bar stands in the terminal's last line."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    return any(not bar.disable for bar in list(getattr(bars, "_instances", ())))


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
            before = self._before[number]
            if not callable(before):  # of a process that was started to ignore it
                raise KeyboardInterrupt
            before(number, frame)
        self.received = self.received or number
