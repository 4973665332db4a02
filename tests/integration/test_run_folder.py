"""The run folder: its lock during training, when it counts as unused, and copies without links."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpdmd import train
from dpdmd.run_folder import LATEST, RunFolder
from dpdmd.training import resume
from dpdmd.utils.manifest import read_manifest


@pytest.fixture
def flags(short_run: list[str], tmp_path: Path) -> list[str]:
    return [*short_run, "--run_dir", str(tmp_path / "run"), "--vis_every", "0"]


def test_two_processes_do_not_train_in_one_folder(flags, tmp_path, capsys):
    """The second would delete the checkpoint that the first is writing, as a leftover."""
    folder = RunFolder.of(tmp_path / "run")
    folder.create()
    holds = "import sys; from pathlib import Path; from dpdmd.run_folder import RunFolder\n"
    holds += f"lock = RunFolder.of(Path({str(tmp_path / 'run')!r})).lock(); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline() == "held\n"
        assert train.main([*flags, "--max_steps", "1"]) == 2
        assert "another process is training there" in capsys.readouterr().err
        first.kill()
    assert train.main([*flags, "--max_steps", "1"]) == 0


def test_checkpoints_are_read_with_the_folder_locked(flags, tmp_path, monkeypatch):
    """Another run could save a newer one in the minutes that reading takes, or delete the one that was read."""
    assert train.main([*flags, "--max_steps", "1"]) == 0
    order, find, lock = [], resume.find, RunFolder.lock
    monkeypatch.setattr(resume, "find", lambda *args, **kinds: order.append(kinds or "read") or find(*args, **kinds))
    monkeypatch.setattr(RunFolder, "lock", lambda self: order.append("locked") or lock(self))
    assert train.main([*flags, "--max_steps", "2", "--resume_from_checkpoint", "latest"]) == 0
    assert order == [{"sizes_only": True}, "locked", "read"]


def test_a_run_that_never_began_leaves_its_folder_unused(flags, tmp_path, monkeypatch):
    """The corrected command must not need --resume_from_checkpoint, which has nothing to continue."""
    folder, other = RunFolder.of(tmp_path / "run"), tmp_path / "run" / "process_vis" / "mine.png"

    def broken(*_):
        raise ValueError("a model that does not load")

    with monkeypatch.context() as patched:
        patched.setattr("dpdmd.training.trainer.build_training_state", broken)
        assert train.main([*flags, "--max_steps", "1"]) == 2
    assert folder.config.is_file() and not folder.flag_in_use()
    other.write_text("somebody's")
    assert folder.flag_in_use()
    other.unlink()
    assert train.main([*flags, "--max_steps", "1"]) == 0
    assert folder.flag_in_use() and train.main([*flags, "--max_steps", "1"]) == 2


def test_a_copy_without_links_continues(flags, tmp_path):
    """In the copy `latest` is a folder, which the next link must replace."""
    assert train.main([*flags, "--max_steps", "6"]) == 0
    copy = RunFolder.of(tmp_path / "copy")
    shutil.copytree(tmp_path / "run", copy.root, symlinks=False)
    assert (copy.ckpts / LATEST).is_dir() and not (copy.ckpts / LATEST).is_symlink()
    again = [*flags, "--run_dir", str(copy.root), "--resume_from_checkpoint", "latest", "--ckpt_every", "6"]
    for steps in ("12", "18"):
        assert train.main([*again, "--max_steps", steps]) == 0
        assert copy.latest() == copy.checkpoint(int(steps)) and (copy.ckpts / LATEST).is_symlink()
    assert (copy.ckpts / "latest_copied_0" / "manifest.json").is_file()
    assert [path.name for path in copy.checkpoints()] == ["step_000006", "step_000012", "step_000018"]


def test_latest_alone_is_a_checkpoint(flags, tmp_path):
    assert train.main([*flags, "--max_steps", "6"]) == 0
    alone = RunFolder.of(tmp_path / "alone")
    shutil.copytree(tmp_path / "run" / "ckpts" / LATEST, alone.ckpts / LATEST)
    assert alone.latest() == alone.ckpts / LATEST
    again = [*flags, "--run_dir", str(alone.root), "--resume_from_checkpoint", "latest", "--max_steps", "12"]
    assert train.main(again) == 0 and alone.latest() == alone.checkpoint(12)


def test_latest_alone_and_damaged_is_an_error(flags, tmp_path, capsys):
    assert train.main([*flags, "--max_steps", "6"]) == 0
    alone = RunFolder.of(tmp_path / "alone")
    shutil.copytree(tmp_path / "run" / "ckpts" / LATEST, alone.ckpts / LATEST)
    (alone.ckpts / LATEST / "state" / "fake.safetensors").unlink()
    again = [*flags, "--run_dir", str(alone.root), "--resume_from_checkpoint", "latest", "--max_steps", "12"]
    assert train.main(again) == 2 and not alone.checkpoints()
    assert f"no checkpoint in {alone.ckpts} is whole" in capsys.readouterr().err.splitlines()[-1]


def test_a_run_that_ends_where_it_stopped_has_a_last_checkpoint_without_links(flags, tmp_path):
    """Fewer --max_steps than before: the checkpoint was not the last one when it was written."""
    assert train.main([*flags, "--max_steps", "13", "--ckpt_every", "6"]) == 0
    folder = RunFolder.of(tmp_path / "run")
    shutil.rmtree(folder.checkpoint(13))
    folder.point(LATEST, folder.checkpoint(12))
    student = folder.checkpoint(12) / "student"
    before = student_bytes(student)
    assert any(path.is_symlink() for path in student.rglob("*"))
    again = [*flags, "--max_steps", "12", "--ckpt_every", "6", "--resume_from_checkpoint", "latest"]
    for _ in range(2):
        assert train.main(again) == 0
        assert not any(path.is_symlink() for path in student.rglob("*")) and student_bytes(student) == before
        written = student.stat().st_ino
    assert student.stat().st_ino == written  # the second call found nothing to write


def test_a_run_that_ends_before_where_it_stopped_is_saved_once_more(flags, tmp_path, monkeypatch, caplog):
    """Its checkpoint can be moved, and keeps the length of the training that made it. A full disk is named before."""
    assert train.main([*flags, "--max_steps", "13", "--ckpt_every", "6"]) == 0
    folder = RunFolder.of(tmp_path / "run")
    shutil.rmtree(folder.checkpoint(13))
    folder.point(LATEST, folder.checkpoint(12))
    again = [*flags, "--max_steps", "3", "--ckpt_every", "6", "--resume_from_checkpoint", "latest"]
    student, before = folder.checkpoint(12) / "student", student_bytes(folder.checkpoint(12) / "student")
    with monkeypatch.context() as patch:
        patch.setattr("dpdmd.utils.paths.free_bytes", lambda path: 1)
        assert train.main(again) == 2
    assert any(path.is_symlink() for path in student.rglob("*"))
    caplog.clear()
    for _ in range(2):
        assert train.main(again) == 0
        assert not any(path.is_symlink() for path in student.rglob("*")) and student_bytes(student) == before
        written = student.stat().st_ino
    assert student.stat().st_ino == written
    assert read_manifest(folder.checkpoint(12))["progress"]["total_steps"] == 13
    assert "it learns nothing" not in caplog.text


def student_bytes(student):
    return (student / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
