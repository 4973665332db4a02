"""A sweep's processes: one job a model, stage after stage; what is finished is skipped, whoever was killed meanwhile.

OUT/runs/dpdmd/seed_0/run/  train.log  train.json  oracle/  oracle.log  oracle.json  .lock

A stage's record (train.json) says what was asked for, before its process starts, and that it is done, after.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpdmd.compare.sweep import Sweep, options_of
from dpdmd.config import Config
from dpdmd.utils.atomic_files import write_text
from dpdmd.utils.signals import StopSignals
from dpdmd.utils.text_files import expecting_mapping_keys, read_json

TRAIN = "train"  # the stage that makes a model; every other one measures it
POLL_SECONDS = 0.2
TAIL_LINES = 15  # of a failing process's log
NO_COMMAND = 127  # as shells say it
# Seconds that torch's launcher leaves its workers after SIGTERM before it kills them. Its own 30 are less than a
# checkpoint of 55 GB takes, and a run that is stopped ends by writing one.
LAUNCHER_PATIENCE = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "900"}


@dataclass(frozen=True)
class Stage:
    """One process.

    Attributes:
        name: of the record and the log.
        asked: what must not change between calls: the configuration, or the measuring command. Plain values.
        own_core: it gets one thread (two threads that share a core with others are several times slower).
    """

    name: str
    folder: Path
    command: list[str]
    asked: dict[str, Any]
    own_core: bool

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}.json"

    def is_done(self) -> bool:
        return self.record.is_file() and _read_record(self.record)[0]

    def note(self, done: bool) -> None:
        write_text(self.record, json.dumps({"done": done, "asked": self.asked}, indent=2) + "\n")

    def check(self) -> None:
        """Whether what is here already was made as it would be now.

        Raises:
            ValueError: it was not, or its record is damaged.
        """
        if not self.record.is_file():
            return
        _, there = _read_record(self.record)
        if changes := _changes(self.asked, there):
            raise ValueError(f"{self.folder}: was made with {changes}; give another --out, or delete that folder")


def _read_record(path: Path) -> tuple[bool, dict[str, Any]]:
    """Whether a stage is done, and what was asked for.

    Raises:
        ValueError: the record is damaged.
    """
    try:
        record = read_json(path)
        with expecting_mapping_keys(path):
            return bool(record["done"]), {**record["asked"]}
    except ValueError as error:
        raise ValueError(f"{error}; delete it: what it is about goes on, or is done once more") from None


def _changes(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """What differs, in words; an option that came into being meanwhile had its default then."""
    theirs = {**{key: value for key, value in options_of(Config()).items() if key in ours}, **theirs}
    keys = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    return ", ".join(f"{key} {theirs.get(key)!r} (now {ours.get(key)!r})" for key in sorted(keys))


@dataclass(frozen=True)
class Job:
    """One model: trained, if it is to be, then measured.

    Attributes:
        seed: of the training; None where nothing is trained.
        model: what is measured, and sampled for the picture.
    """

    configuration: str
    seed: int | None
    folder: Path
    model: Path
    stages: tuple[Stage, ...]

    @property
    def label(self) -> str:
        return self.configuration if self.seed is None else f"{self.configuration}, seed {self.seed}"

    def is_done(self) -> bool:
        return all(stage.is_done() for stage in self.stages)


def plan_jobs(sweep: Sweep, out: Path, reuse: Sequence[Path] = ()) -> list[Job]:
    """Every job of a sweep, seed after seed, so that an early end leaves whole rows.

    A model that was trained in one of the sweeps' folders `reuse` with the same options and seed is measured only.
    """
    pairs = [(name, seed) for name in sweep.configurations for seed in sweep.seeds_of(name)]
    order = {seed: place for place, seed in enumerate((None, *sweep.seeds))}
    return [_job(sweep, name, seed, out, reuse) for name, seed in sorted(pairs, key=lambda pair: order[pair[1]])]


def _job(sweep: Sweep, name: str, seed: int | None, out: Path, reuse: Sequence[Path]) -> Job:
    configuration = sweep.configurations[name]
    given = configuration.model
    folder = out / "runs" / (name if seed is None else f"{name}/seed_{seed}")
    stages = []
    if seed is not None:
        asked = {"launcher": list(configuration.launcher), **configuration.resolved}
        command = sweep.train_command(name, seed, folder / "run")
        train = Stage(TRAIN, folder, command, asked, sweep.on_cores)
        given = _trained_elsewhere(train, reuse)
        stages += [train] if given is None else []
    model = folder / "run" if given is None else Path(given)
    for measure in sweep.measures.values():
        asked = {"command": list(measure.command), "model": given}
        command = sweep.measure_command(measure.name, str(model), folder / measure.name)
        stages.append(Stage(measure.name, folder, command, asked, sweep.on_cores))
    return Job(name, seed, folder, model, tuple(stages))


def _trained_elsewhere(train: Stage, reuse: Sequence[Path]) -> str | None:
    """The run folder of a finished training that was asked for the same; None once one has begun here.

    Raises:
        ValueError: a record of a training elsewhere is damaged.
    """
    if train.record.is_file():
        return None
    for record in (path for out in reuse for path in sorted(out.glob(f"runs/*/{train.folder.name}/train.json"))):
        done, there = _read_record(record)
        if done and not _changes(train.asked, there):
            return str(record.with_name("run"))
    return None


class Workers:
    """Runs jobs side by side; a job that fails leaves the others alone.

    A process that outlives a killed sweep keeps its job's lock, so that the next call waits for it instead of starting
    a second one on the same folder.

    Attributes:
        stopped: number of the signal that ended it early, or 0.
        failures: the jobs of which a process failed; each was told, with the end of its log.
    """

    def __init__(self, count: int, show: Callable[[], object] = lambda: None):
        """`count` jobs at a time; `show` is called after each one that is finished, never twice at once."""
        self._count = count
        self._show = show
        self._showing = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._mutex = threading.Lock()
        self.stopped = 0
        self.failures: list[str] = []

    def run(self, jobs: Sequence[Job]) -> None:
        """All of them; returns early after SIGTERM, SIGINT or SIGUSR1, once the running processes have saved."""
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
                os.killpg(process.pid, signal.SIGTERM)

    def _try_job(self, job: Job, bar: tqdm) -> None:
        try:
            self._run_job(job, bar)
        except OSError as error:  # a full disk, a folder that is gone: no reason to wait for the others and then fall
            self.failures.append(job.label)
            _tell(f"{job.label}: {error}")

    def _run_job(self, job: Job, bar: tqdm) -> None:
        if job.is_done() or self.stopped:
            return
        job.folder.mkdir(parents=True, exist_ok=True)
        with (job.folder / ".lock").open("w") as lock:
            if not self._acquire(lock.fileno(), job):
                return
            for stage in job.stages:
                if stage.is_done():
                    continue
                stage.note(done=False)
                if stage.name != TRAIN:  # {out}: from a folder that is not there, {out}/../oracle leads nowhere
                    (job.folder / stage.name).mkdir(exist_ok=True)
                status = self._run_stage(stage, lock.fileno())
                if self.stopped:
                    return
                if status != 0:
                    self.failures.append(job.label)
                    _tell(f"{job.label}: {stage.name} ended with status {status}\n{_tail(stage.log)}")
                    return
                stage.note(done=True)
                bar.update()
        # Here and not in `run`, which must hear a signal at once: the tests over 10,000 prompts take a while.
        with self._showing:
            try:
                self._show()
            except Exception as error:  # whatever it is, the trainings go on; the end of the sweep shows it again
                _tell(f"the tables so far could not be written ({type(error).__name__}: {error})")

    def _acquire(self, lock: int, job: Job) -> bool:
        told = False
        while not self.stopped:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if not told:
                    _tell(f"{job.label}: waiting for a process of an earlier call that is still at work there")
                told = True
                time.sleep(POLL_SECONDS)
        return False

    def _run_stage(self, stage: Stage, lock: int) -> int:
        """Exit status of the stage's process, which inherits the lock."""
        environment = {**LAUNCHER_PATIENCE, **os.environ, **({"OMP_NUM_THREADS": "1"} if stage.own_core else {})}
        with stage.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {' '.join(stage.command)}\n")
            log.flush()
            with self._mutex:
                if self.stopped:
                    return 0
                try:  # in a session of its own: Ctrl-C reaches the sweep alone, which hands it on once
                    process = subprocess.Popen(
                        stage.command, stdout=log, stderr=log, env=environment, pass_fds=(lock,), start_new_session=True
                    )
                except OSError as error:
                    log.write(f"{error}\n")
                    return NO_COMMAND
                self._running.add(process)
            status = process.wait()
        with self._mutex:
            self._running.discard(process)
        return status


def _tell(text: str) -> None:
    tqdm.write(text, file=sys.stderr)  # the table alone goes to stdout


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    return "\n".join(f"  {line}" for line in [line for line in lines if line.strip()][-TAIL_LINES:])
