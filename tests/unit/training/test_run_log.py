"""The lines of log.txt."""

import errno
import logging
import os
from types import SimpleNamespace

import pytest

from dpdmd.config import Config
from dpdmd.run_folder import RunFolder
from dpdmd.training.run_log import RunLog
from dpdmd.utils import logging as logging_setup

MAIN = SimpleNamespace(is_main_process=True)


@pytest.fixture
def lines():
    """Return the lines that a run logs."""
    found, logger = [], logging.getLogger("dpdmd")
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


def record(step: int) -> dict:
    turn = "student" if step % 6 == 0 else "fake"
    return {"step": step, "turn": turn, f"loss_{turn}": step / 8, "lr": 0.5, "seconds": 0.25, "memory_gb": 2.0}


def test_a_line_has_the_latest_metrics_of_both_updates(lines, tmp_path):
    """With ten steps between lines and a cycle of six, the student's update is on a line only every 30 steps."""
    folder, config = RunFolder.of(tmp_path), Config()
    config.run.report_to, config.run.log_every = "none", 10
    with RunLog(folder, config, MAIN, 0, 30) as log:
        for step in range(1, 21):
            log.step(record(step))
    ten = "step 10 fake loss_fake=1.25 lr=0.5 seconds=0.25 memory_gb=2 | student at step 6: loss_student=0.75 lr=0.5"
    assert lines == [ten, ten.replace("10", "20").replace("1.25", "2.5").replace("6:", "18:").replace("0.75", "2.25")]
    config.run.log_every = 1
    with RunLog(folder, config, MAIN, 20, 30) as log:  # a resumed run knows the student's last update
        log.step(record(21))
    assert lines[-1].endswith("| student at step 18: loss_student=2.25 lr=0.5")


def test_a_full_disk_is_one_line(lines, tmp_path, capsys):
    """Training goes on; the terminal keeps every line."""

    def write(_: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    logger = logging.getLogger("dpdmd")
    before, propagates = list(logger.handlers), logger.propagate
    logging_setup.set_up_logging(tmp_path / "log.txt")
    logger.handlers[-1].stream.close()
    logger.handlers[-1].stream = SimpleNamespace(write=write, flush=lambda: None, close=lambda: None)
    for number in range(3):
        logger.info("line %d", number)
    logging_setup.set_up_logging(None)
    logger.handlers[:], logger.propagate = before, propagates
    found = capsys.readouterr().err.splitlines()
    assert [line.rpartition(" INFO ")[2] for line in found if " INFO " in line] == ["line 0", "line 1", "line 2"]
    (said,) = [line for line in found if " INFO " not in line]
    assert said.startswith(f"{tmp_path / 'log.txt'}: cannot be written (No space left on device); ")
