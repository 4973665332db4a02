"""The writer of checkpoints: it reports what failed, and finishes unless it is interrupted twice."""

import threading
from pathlib import Path

import pytest

from dpdmd.training.checkpoint import SaveError
from dpdmd.training.checkpointer import CheckpointWriter


def test_a_writer_reports_a_failure_and_raises_other_errors():
    writer = CheckpointWriter()
    assert writer.wait() is None
    writer.start(lambda: Path("here"))
    assert writer.wait() is None and writer.failure is None

    def full():
        raise SaveError("no space")

    writer.start(full)
    assert writer.wait() == "no space" and writer.wait() == "no space"

    def wrong():
        raise KeyError("a fault of ours")

    other = CheckpointWriter()
    other.start(wrong)
    with pytest.raises(KeyError, match="a fault of ours"):
        other.wait()


def test_a_second_interrupt_leaves_what_is_being_written():
    """Any other end waits for it."""
    writer, go_on = CheckpointWriter(), threading.Event()

    def slow():
        assert go_on.wait(60)
        return Path("here")

    with pytest.raises(KeyboardInterrupt), writer:
        writer.start(slow)
        raise KeyboardInterrupt
    assert writer._thread.is_alive()
    go_on.set()
    assert writer.wait() is None
