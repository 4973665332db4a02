"""The lines of log.txt."""

import logging
from types import SimpleNamespace

import pytest

from dpdmd.config import Config
from dpdmd.run_folder import RunFolder
from dpdmd.training.run_log import RunLog

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
