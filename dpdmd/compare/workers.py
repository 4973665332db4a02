"""Run a sweep's jobs in parallel processes, and stop them on a signal."""

import errno
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

from tqdm import tqdm

from dpdmd.compare.jobs import TRAIN, Job, Stage
from dpdmd.utils.signals import StopSignals

POLL_SECONDS = 0.2
TAIL_LINES = 15  # of a failed process's log
COMMAND_NOT_FOUND = 127  # as shells report it
# Seconds that torch's launcher leaves its workers after SIGTERM before it kills them. Its default of 30 is less than a
# checkpoint of 55 GB takes, and a run that is stopped ends by writing one.
LAUNCHER_TIMEOUT = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "900"}


class Workers:
    """Runs jobs in parallel; a failed job does not affect the others.

    A process that outlives a killed sweep keeps its job's lock. The next call waits for that process and does not start
    a second one in the same folder.

    Attributes:
        stopped: number of the signal that ended the sweep early, or 0.
        failures: labels of the jobs with a failed process; each failure is printed with the end of its log.
    """

    def __init__(self, count: int, on_finished: Callable[[], object] = lambda: None):
        """Run `count` jobs at a time; `on_finished` is called after each finished job, never twice at once."""
        self._count = count
        self._on_finished = on_finished
        self._calling_back = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._mutex = threading.Lock()
        self.stopped = 0
        self.failures: list[str] = []

    def run(self, jobs: Sequence[Job]) -> None:
        """Run all jobs. Return early after one of SIGNALS, once the running processes have saved."""
        stages = [stage for job in jobs for stage in job.stages]
        done = sum(stage.is_done() for stage in stages)
        with (
            tqdm(total=len(stages), initial=done, desc="trained and measured", unit="process") as bar,
            StopSignals() as signals,
            ThreadPoolExecutor(self._count) as pool,
        ):
            waiting = {pool.submit(self._try_job, job, bar) for job in jobs}
            while waiting:
                finished, waiting = wait(waiting, timeout=POLL_SECONDS)
                if signals.received and not self.stopped:
                    self._stop(signals.received)
                for future in finished:
                    future.result()

    def _stop(self, number: int) -> None:
        with self._mutex:
            self.stopped = number
            for process in self._running:
                with suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process.pid, signal.SIGTERM)

    def _try_job(self, job: Job, bar: tqdm) -> None:
        try:
            self._run_job(job, bar)
        except Exception as error:  # a full disk, a damaged record, a library's error: the other jobs go on
            self.failures.append(job.label)
            kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
            _print(f"{job.label}: {kind}{error}")

    def _run_job(self, job: Job, bar: tqdm) -> None:
        if job.is_done() or self.stopped:
            return
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / ".lock").open("w") as lock:
            if not self._acquire(lock.fileno(), job):
                return
            for stage in job.stages:
                stage.check()  # while this job waited, another sweep may have worked in its folder
                if not stage.is_done() and not self._run_stage(job, stage, lock.fileno(), bar):
                    return
        # Called here and not in `run`, which must react to a signal at once: tests over 10,000 prompts take a while.
        with self._calling_back:
            try:
                self._on_finished()
            except Exception as error:  # trainings go on after any error; the end of the sweep reports it again
                _print(f"the tables so far could not be written ({type(error).__name__}: {error})")

    def _acquire(self, lock: int, job: Job) -> bool:
        """Wait for the job's lock, if the file system has locks; return False if the sweep is stopped first."""
        reported = False
        while not self.stopped:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    return True  # the file system has no locks
                if not reported:
                    _print(f"{job.label}: waiting for a process of an earlier call that is still running there")
                reported = True
                time.sleep(POLL_SECONDS)
        return False

    def _run_stage(self, job: Job, stage: Stage, lock: int, bar: tqdm) -> bool:
        """Run one stage and record it; return whether the job can go on.

        Raises:
            ValueError: a measure has no readable result.
        """
        stage.write_record(done=False)
        if stage.name != TRAIN:  # {out} must exist, or the path {out}/../oracle does not resolve
            stage.out.mkdir(exist_ok=True)
        status = self._run_process(stage, lock)
        if status is None or (self.stopped and status != 0):
            return False
        if status != 0:
            self.failures.append(job.label)
            _print(f"{job.label}: {stage.name} ended with status {status}\n{_tail(stage.log)}")
            return False
        if stage.name != TRAIN:
            stage.metrics()  # raises if the program has written none, which `_try_job` reports
        stage.write_record(done=True)
        bar.update()
        return True

    def _run_process(self, stage: Stage, lock: int) -> int | None:
        """Return the exit status of the stage's process, which inherits the lock; None if it was not started."""
        environment = {**LAUNCHER_TIMEOUT, **os.environ, **({"OMP_NUM_THREADS": "1"} if stage.single_thread else {})}
        with stage.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(stage.command)}\n")
            log.flush()
            with self._mutex:
                if self.stopped:
                    return None
                try:  # in its own session: Ctrl-C reaches only the sweep, which passes it on once
                    process = subprocess.Popen(
                        stage.command, stdout=log, stderr=log, env=environment, pass_fds=(lock,), start_new_session=True
                    )
                except OSError as error:
                    log.write(f"{error}\n")
                    return COMMAND_NOT_FOUND
                self._running.add(process)
            status = process.wait()
        with self._mutex:
            self._running.discard(process)
        return status


def _print(text: str) -> None:
    tqdm.write(text, file=sys.stderr)  # stdout gets only the table


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return "\n".join(f"  {line}" for line in [line for line in lines if line.strip()][-TAIL_LINES:])
