"""Checkpoints are written from a copy while training continues, one at a time; a failure ends the run a step later."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dpdmd import config, train
from dpdmd.training import checkpoint, preflight
from dpdmd.training.checkpointer import CheckpointWriter
from dpdmd.training.trainer import Trainer

STUDENT = "student/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def flags(short_run: list[str], tmp_path: Path) -> list[str]:
    return [*short_run, "--run_dir", str(tmp_path / "run"), "--vis_every", "0"]


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def state(folder: Path) -> dict[str, bytes]:
    names = (
        STUDENT,
        "state/fake.safetensors",
        "state/optimizer_student.safetensors",
        "state/optimizer_fake.safetensors",
    )
    return {name: (folder / name).read_bytes() for name in names}


def test_training_goes_on_and_the_checkpoint_is_of_its_own_step(flags, tmp_path, monkeypatch):
    """Step 2's checkpoint waits until step 4 is recorded, and still holds step 2; `latest` moves only then."""
    ahead, behind, healthy, run = tmp_path / "ahead", tmp_path / "run", checkpoint.save, tmp_path / "run"
    states = []
    assert train.main([*flags, "--run_dir", str(ahead), "--max_steps", "6", "--ckpt_every", "2"]) == 0
    four_steps = threading.Event()

    def slow(folder, snapshot, *arguments, **options):
        if snapshot.progress.step == 2:
            assert four_steps.wait(60)
            states.append((len(records(run)), (run / "ckpts" / "latest").exists()))
        return healthy(folder, snapshot, *arguments, **options)

    start = Trainer.start_step

    def signalling(self, step):
        if step == 3:
            four_steps.set()
        return start(self, step)

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(Trainer, "start_step", signalling)
    assert train.main([*flags, "--max_steps", "6", "--ckpt_every", "2"]) == 0
    ((recorded, moved),) = states
    assert recorded >= 3 and not moved
    for step in (2, 4, 6):
        assert state(behind / "ckpts" / f"step_{step:06d}") == state(ahead / "ckpts" / f"step_{step:06d}")
    assert os.readlink(behind / "ckpts" / "latest") == "step_000006"


@pytest.mark.parametrize("fused", [None, True])
def test_a_snapshot_does_not_move_with_what_is_trained(flags, monkeypatch, fused):
    """Every weight, moment and count of it stays what it was while steps are taken."""
    healthy = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *given, **more: healthy(*given, **{**more, "fused": fused}))
    trainer = Trainer(preflight.check(config.parse([*flags, "--per_train_fake_num", "1"])))
    for step in range(2):
        trainer.take_step(step)
    taken = trainer.checkpointer.snapshot(2)
    parts = [*taken.networks.values(), *taken.optimizers.values()]
    before = [{name: value.clone() for name, value in part.items()} for part in parts]
    assert all(before)
    for step in range(2, 4):
        trainer.take_step(step)
    for part, then in zip(parts, before, strict=True):
        assert all(torch.equal(part[name], value) for name, value in then.items())
    moved = trainer.checkpointer.snapshot(4)
    student, moments = taken.networks["student"], taken.optimizers["fake"]
    assert any(not torch.equal(moved.networks["student"][name], value) for name, value in student.items())
    assert any(not torch.equal(moved.optimizers["fake"][name], value) for name, value in moments.items())


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("the teacher's config.json is not JSON")]
)
def test_a_failed_write_ends_the_run_on_the_next_step(flags, tmp_path, monkeypatch, capsys, error):
    """Not only when the next checkpoint is due: the steps in between would be lost."""
    failed, healthy, start = threading.Event(), CheckpointWriter._run, Trainer.start_step

    def failing(tensors, path):
        raise error

    def run(self, write):
        healthy(self, write)
        failed.set()

    def waiting(self, step):
        if step == 3:
            assert failed.wait(60)
        return start(self, step)

    monkeypatch.setattr(checkpoint, "save_file", failing)
    monkeypatch.setattr(CheckpointWriter, "_run", run)
    monkeypatch.setattr(Trainer, "start_step", waiting)
    assert train.main([*flags, "--max_steps", "30", "--ckpt_every", "3"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("dpdmd.train: stopped: ") and "step_000003 could not be written" in line
    assert len(records(tmp_path / "run")) == 4
    assert sorted(path.name for path in (tmp_path / "run" / "ckpts").iterdir()) == []


def test_a_run_that_fails_otherwise_still_ends_with_a_whole_checkpoint(flags, tmp_path, monkeypatch):
    """A checkpoint that was begun is finished before the error is reported."""
    begun, healthy, start = threading.Event(), checkpoint.save, Trainer.start_step

    def slow(*arguments, **options):
        assert begun.wait(60)
        return healthy(*arguments, **options)

    def broken(self, step):
        if step == 2:
            begun.set()
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return start(self, step)

    monkeypatch.setattr(checkpoint, "save", slow)
    monkeypatch.setattr(Trainer, "start_step", broken)
    assert train.main([*flags, "--max_steps", "6", "--ckpt_every", "2"]) == 1
    assert os.readlink(tmp_path / "run" / "ckpts" / "latest") == "step_000002"
    assert load_file(tmp_path / "run" / "ckpts" / "latest" / STUDENT)
