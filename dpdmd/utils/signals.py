"""Signals that end a program early, with one line on stderr and exit status 128 + the signal's number.

A scheduler sends SIGTERM to take the machine back, and SIGUSR1, SIGUSR2 or SIGXCPU to warn before that. A person sends
SIGINT, and a terminal that closes sends SIGHUP. Training finishes its step and saves a checkpoint first
(`StopSignals`), and a second SIGINT ends it at once. Every other program, and training while it loads, ends at once
(`install_exit_handlers`). Imports nothing heavy, because programs import this module before anything else.
"""

import errno
import io
import os
import signal
import stat
import sys
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from dpdmd.utils.atomic_files import delete_unfinished
from dpdmd.utils.library_settings import check_import, check_torch_variables
from dpdmd.utils.programs import print_error

STDERR = 2
LAUNCHED = "TORCHELASTIC_RUN_ID"  # environment variable of processes that torch's launcher starts
PR_SET_PDEATHSIG = 1  # option of Linux's prctl
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU, signal.SIGHUP)

_FAILING = ("strict", "surrogateescape")  # error handlers of text streams that raise UnicodeEncodeError


def install_exit_handlers(program: str) -> None:
    """End this process at the first of SIGNALS, wherever it is. Call this in a program's first line, not in a function.

    Python turns SIGINT into an exception, which libraries catch while they are imported, in threads and in callbacks,
    or show as a traceback. A process that is still in a process group also aborts when the interpreter shuts down. So
    the handler deletes unfinished files, prints one line and ends the process.
    """

    ending = threading.Lock()

    _keep_writing()

    def end(number: int, frame: FrameType | None) -> None:
        if not ending.acquire(blocking=False):
            return  # a launcher sends the signal twice, and people press Ctrl-C twice
        delete_unfinished()
        _print_line(f"{program}: stopped: {signal.Signals(number).name}; files written before are complete")
        os._exit(128 + number)

    def watch() -> None:
        """Handle signals in a thread: Python runs handlers in the main thread only, which may be blocked in torch."""
        while True:
            for number in os.read(reader, 1):
                if signal.getsignal(number) is end:
                    end(number, None)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="signals", daemon=True).start()
    for number in _handled_signals():
        signal.signal(number, end)
    _end_with_launcher()
    _check_imports(program)


def _check_imports(program: str) -> None:
    """Exit if torch or tqdm, which torch imports, could not be imported: no later check would be reached."""
    try:
        try:
            os.getcwd()
        except OSError:
            raise ValueError("the current folder is gone; cd to one that exists") from None
        check_import("TQDM_", "tqdm")
        check_torch_variables()
    except ValueError as error:
        sys.exit(print_error(program, error))


def _handled_signals() -> list[signal.Signals]:
    """Return SIGNALS, without SIGHUP if the process was started to ignore SIGHUP, as under nohup.

    torch's launcher receives SIGHUP under nohup too. It passes SIGHUP on to its processes and then kills them, so they
    handle SIGHUP in any case.
    """
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and LAUNCHED not in os.environ
    return [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]


class _Stream(io.FileIO):
    """Raw stdout or stderr whose writes are discarded after the reader has gone."""

    def write(self, data: Any) -> int | None:
        try:
            return super().write(data)
        except OSError as error:
            terminal = stat.S_ISCHR(os.fstat(self.fileno()).st_mode)  # a closed terminal fails as a broken disk does
            if not (error.errno == errno.EPIPE or (error.errno == errno.EIO and terminal)):
                error.filename = "standard error" if self.fileno() == STDERR else "standard output"
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())  # for libraries that write to the descriptor, and for child processes
            os.close(nowhere)
            return super().write(data)


def _keep_writing() -> None:
    """Let no write to stdout or stderr fail because a terminal was closed, or the reader of a pipe has ended.

    Otherwise the next line of a progress bar would end a run that has its log in a file. A letter that the encoding
    lacks, as in the path that a program prints after its work, is written as its escape. A stream that was closed
    before the program started takes lines, too.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        if type(stream) is not io.TextIOWrapper:  # closed, or replaced, as in a notebook
            continue
        raw = _Stream(stream.fileno(), "w", closefd=False)
        wrapped = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors="backslashreplace" if stream.errors in _FAILING else stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        setattr(sys, name, wrapped)


def _end_with_launcher() -> None:
    """Request SIGTERM when the launcher dies. Otherwise its processes would train on and keep the run folder locked."""
    if LAUNCHED not in os.environ or not sys.platform.startswith("linux"):
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # the launcher died before the request
        os.kill(os.getpid(), signal.SIGTERM)


def final_status(status: int) -> int:
    """Return the exit status of a program that has finished, and ignore SIGNALS from here on.

    Python restores the default handlers while it shuts down, so a signal would change the status of a finished program.
    Its last lines are written here, since an error in the shutdown would be a traceback.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        sys.stdout.flush()
    except OSError as error:
        _print_line(f"stopped: {error}")
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status or 1
    return status


def _print_line(line: str) -> None:
    """Print a line to stderr by os.write, because the signal may have interrupted a print."""
    with suppress(OSError):  # stderr may be closed
        os.write(STDERR, f"{chr(10) * _has_progress_bar()}{line}\n".encode())


def _has_progress_bar() -> bool:
    """Return whether a tqdm progress bar is on the terminal's last line."""
    bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
    return any(not bar.disable for bar in list(getattr(bars, "_instances", ())))


class Interrupted(Exception):
    """A signal ended the run; `what_next` says what was saved and how to continue.

    Attributes:
        status: exit status, 128 + the signal's number, as in shells.
    """

    def __init__(self, number: int, what_next: str):
        super().__init__(f"{signal.Signals(number).name}: {what_next}")
        self.status = 128 + number


class StopSignals:
    """Context manager that records the first of SIGNALS instead of ending the process. A second SIGINT ends it.

    Attributes:
        received: number of the first signal, 0 if there was none.
    """

    def __init__(self, announcement: str = "") -> None:
        """Set what the first signal prints to stderr after its name, if anything."""
        self.received, self._announcement = 0, announcement

    def __enter__(self) -> "StopSignals":
        # Python allows handlers in the main thread only; in another thread the caller's handlers stay.
        handled = _handled_signals() if threading.current_thread() is threading.main_thread() else ()
        self._previous = {number: signal.signal(number, self._record) for number in handled}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            previous = self._previous[number]
            if not callable(previous):  # the process was started with SIGINT ignored
                raise KeyboardInterrupt
            previous(number, frame)
        if not self.received and self._announcement:
            _print_line(f"{signal.Signals(number).name}: {self._announcement}")
        self.received = self.received or number
