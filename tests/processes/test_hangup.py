"""A terminal that closes: training saves, with and without a launcher, and goes on if it was started to ignore that."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from processes import LAUNCHER, cpu_environment, free_port

from dpdmd.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
TRAIN = ["-m", "dpdmd.train"]
pytestmark = pytest.mark.usefixtures("default_hangup")


def launched() -> list[str]:
    return ["-m", *LAUNCHER, "--master_port", free_port(), "--nproc_per_node", "2", *TRAIN]


def start_in_terminal(command: Sequence[str], cwd: Path) -> int:
    """Run a shell command in a new session with a terminal of its own; return the terminal's other end."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.chdir(cwd)
        os.execve("/bin/sh", ["sh", "-c", *command], {**cpu_environment(), "PYTHONPATH": str(ROOT)})
    return terminal


def wait_for(condition: Callable[[], bool], terminal: int) -> None:
    until = time.monotonic() + 200
    os.set_blocking(terminal, False)
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)
        with suppress(OSError):
            os.read(terminal, 100_000)  # a full terminal would block the run


def log_of(run: Path) -> str:
    log = run / "log" / "log.txt"
    return log.read_text() if log.exists() else ""


@pytest.mark.parametrize(
    ("prefix", "launcher", "saves"),
    [("", False, True), ("", True, True), ("trap '' HUP; ", False, False), ("nohup ", True, True)],
    ids=["one process", "launcher", "one process that ignores SIGHUP", "launcher under nohup"],
)
def test_a_terminal_that_closes(short_run, tmp_path, prefix, launcher, saves):
    """A process that ignores SIGHUP cannot write to the closed terminal either; torch's launcher undoes nohup."""
    run = tmp_path / "run"
    flags = [*short_run, "--run_dir", str(run), "--ckpt_every", "1000", "--vis_every", "0", "--log_every", "1"]
    flags += ["--max_steps", "1000" if saves else "8"]
    command = shlex.join([sys.executable, *(launched() if launcher else TRAIN), *flags])
    terminal = start_in_terminal([prefix + command + "; true"], tmp_path)
    metrics = run / "metrics.jsonl"
    try:
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2, terminal)
    finally:
        os.close(terminal)
    ended = "stopped: SIGHUP: saved at step" if saves else "step 8 "
    until = time.monotonic() + 200
    while not (ended in log_of(run) and RunFolder.of(run).latest()):
        assert time.monotonic() < until, log_of(run)
        time.sleep(0.05)
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert RunFolder.of(run).latest().name == f"step_{records[-1]['step']:06d}"
    assert len(records) < 1000 if saves else len(records) == 8


def test_a_run_goes_on_when_the_reader_of_its_output_ends(short_run, tmp_path):
    run = ["--run_dir", str(tmp_path / "run"), "--max_steps", "4", "--vis_every", "0", "--log_every", "1"]
    command = [sys.executable, *TRAIN, *short_run, *run]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env=cpu_environment()) as process:
        process.stderr.readline()
        process.stderr.close()
        assert process.wait(timeout=300) == 0
    assert RunFolder.of(tmp_path / "run").latest().name == "step_000004"
