"""Checkpoints: the writer reports what failed and finishes unless interrupted twice; which checkpoint is the best."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpdmd.config import Config
from dpdmd.evaluation.in_loop_setup import ImageSet
from dpdmd.run_folder import RunFolder
from dpdmd.training.checkpoint import Progress, SaveError
from dpdmd.training.checkpointer import Checkpointer, CheckpointWriter
from dpdmd.training.resume import ResumePoint
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
    """The run went back to step 2. It scores its step 6 anew, but the checkpoint of step 6 is the old one.

    The next session knows it from the checkpoint that it continues, whatever copies have done to the times of files.
    """
    folder, config = RunFolder.of(tmp_path / "run"), Config()
    for step in (2, 6, 8):
        folder.checkpoint(step).mkdir(parents=True)
        write_manifest(folder.checkpoint(step), {})
    image_set = ImageSet("set", ["a"], 1, ("pickscore",))

    def checkpointer(step: int, left_behind: list[int]) -> Checkpointer:
        point = ResumePoint(folder.checkpoint(step), Progress(step, {}, 4, left_behind=left_behind))
        setup = SimpleNamespace(
            config=config, folder=folder, resume=point, evaluation=SimpleNamespace(sets=[image_set]), total_steps=12
        )
        accelerator = SimpleNamespace(is_main_process=False)
        made = Checkpointer(setup, accelerator, SimpleNamespace(trained={}, average=None, run=None))
        accelerator.is_main_process = True
        return made

    key = image_set.metric_key("pickscore")
    log = SimpleNamespace(evaluations=[{"step": 2, key: 0.2}, {"step": 6, key: 0.9}, {"step": 8, key: 0.3}])
    folder.point("best", folder.checkpoint(6))
    for resumed_at, left_behind, best in ((2, [], 2), (8, [6], 8), (8, [], 6)):
        checkpointer(resumed_at, left_behind).point_best(log)
        assert folder.best() == folder.checkpoint(best)
    checkpointer(8, [6]).point_best(SimpleNamespace(evaluations=[]))
    assert folder.best() is None
