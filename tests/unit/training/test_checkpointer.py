"""Checkpoints: the writer reports what failed and finishes unless interrupted twice; which checkpoint is the best."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpdmd.config import Config
from dpdmd.evaluation.in_loop_setup import ImageSet
from dpdmd.run_folder import RunFolder
from dpdmd.training.checkpoint import SaveError
from dpdmd.training.checkpointer import Checkpointer, CheckpointWriter
from dpdmd.utils.manifest import write_manifest


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


def test_a_checkpoint_that_a_run_went_back_from_is_not_the_best(tmp_path):
    """The run was resumed at step 2 and scores its own step 6, of which only the old way has a checkpoint."""
    folder, config = RunFolder.of(tmp_path / "run"), Config()
    for step in (2, 6):
        folder.checkpoint(step).mkdir(parents=True)
        write_manifest(folder.checkpoint(step), {})
    image_set = ImageSet("set", ["a"], 1, ("pickscore",))
    setup = SimpleNamespace(
        config=config, folder=folder, resume=SimpleNamespace(step=2), evaluation=SimpleNamespace(sets=[image_set])
    )
    state = SimpleNamespace(trained={}, average=None, run=None)
    accelerator = SimpleNamespace(is_main_process=False)
    went_back = Checkpointer(setup, accelerator, state)
    setup.resume.step = 6
    goes_on = Checkpointer(setup, accelerator, state)
    accelerator.is_main_process = True
    key = image_set.metric_key("pickscore")
    log = SimpleNamespace(evaluations=[{"step": 2, key: 0.2}, {"step": 6, key: 0.9}])
    went_back.point_best(log)
    assert folder.best() == folder.checkpoint(2)
    goes_on.point_best(log)
    assert folder.best() == folder.checkpoint(6)
