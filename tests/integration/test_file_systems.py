"""Runs on file systems of other people: their umask, no links, a read-only teacher, a read-only cache, odd folders."""

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from dpdmd import export, generate, train
from dpdmd.run_folder import BEST, LATEST, RunFolder


@pytest.fixture
def flags(short_run: list[str], tmp_path: Path) -> list[str]:
    return [*short_run, "--run_dir", str(tmp_path / "run"), "--vis_every", "0", "--ckpt_every", "2"]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.of(tmp_path / "run")


def modes(root: Path) -> set[int]:
    """Return the permissions of all files below a folder; files that links lead to do not count."""
    return {stat.S_IMODE(path.lstat().st_mode) for path in root.rglob("*") if path.is_file() and not path.is_symlink()}


@pytest.mark.parametrize("lora", [[], ["--lora_rank", "2"]], ids=["full", "lora"])
def test_all_files_of_a_run_and_of_an_export_follow_the_umask(flags, folder, tmp_path, lora):
    old = os.umask(0o027)
    try:
        cache = ["--cache_text_embeddings", str(tmp_path / "cache"), "--vis_every", "2"]
        assert train.main([*flags, *lora, *cache, "--max_steps", "2", "--ema_decay", "0.9"]) == 0
        assert export.main(["--model", str(folder.root), "--out", str(tmp_path / "out")]) == 0
    finally:
        os.umask(old)
    assert modes(folder.root) == modes(tmp_path / "out") == modes(tmp_path / "cache") == {0o640}


def test_a_run_without_links(flags, folder, no_links, tmp_path, capsys):
    """`latest` is a text file. It continues the run, and paths through it lead to the newest checkpoint."""
    assert train.main([*flags, "--max_steps", "4"]) == 0
    assert "has no symbolic links: each checkpoint has a copy" in (folder.root / "log" / "log.txt").read_text()
    assert (folder.ckpts / LATEST).read_text() == "step_000004\n"
    assert folder.latest() == folder.checkpoint(4)
    assert not any(path.is_symlink() for path in folder.root.rglob("*"))
    assert train.main([*flags, "--max_steps", "6", "--resume_from_checkpoint", "latest"]) == 0
    assert folder.latest() == folder.checkpoint(6)
    for model in (folder.root, folder.ckpts / LATEST, folder.ckpts / LATEST / "student", folder.checkpoint(2)):
        made = ["--prompt", "a cross", "--num_images", "1", "--steps", "1", "--out", str(tmp_path / "images")]
        assert generate.main(["--model", str(model), *made]) == 0
    again = [*flags, "--max_steps", "8", "--resume_from_checkpoint", str(folder.ckpts / LATEST)]
    assert train.main(again) == 0 and folder.latest() == folder.checkpoint(8)
    (folder.ckpts / BEST).write_text("step_000099\n")
    assert folder.best() is None
    folder.clear_leftovers()
    assert not (folder.ckpts / BEST).exists() and folder.latest() == folder.checkpoint(8)


def test_a_copied_run_without_links_becomes_one_with_links(flags, folder):
    """For example a run that was moved from a USB drive."""
    assert train.main([*flags, "--max_steps", "2"]) == 0
    (folder.ckpts / LATEST).unlink()
    (folder.ckpts / LATEST).write_text("step_000002\n")
    assert train.main([*flags, "--max_steps", "4", "--resume_from_checkpoint", "latest"]) == 0
    assert os.readlink(folder.ckpts / LATEST) == "step_000004"


def test_copies_of_a_read_only_teacher_can_be_deleted(flags, folder, tiny_pipeline, tmp_path):
    """Such copies once inherited the mode 0555, and a continued run could not delete its old checkpoint."""
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_pipeline, teacher)
    for path in [*teacher.rglob("*"), teacher]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    limited = [*flags, "--teacher_id", str(teacher), "--checkpoints_total_limit", "1"]
    assert train.main([*limited, "--max_steps", "2"]) == 0
    for path in folder.checkpoint(2).rglob("*"):
        assert path.is_symlink() or path.stat().st_mode & stat.S_IWUSR, path
    assert train.main([*limited, "--max_steps", "4", "--resume_from_checkpoint", "latest"]) == 0
    assert folder.checkpoints() == [folder.checkpoint(4)]


def test_a_checkpoint_that_cannot_be_deleted_is_a_warning(flags, folder, monkeypatch):
    def refuse(path):
        if path.name.endswith(".old.tmp") and path.exists():
            raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr("dpdmd.training.checkpoint.delete_tree", refuse)
    assert train.main([*flags, "--max_steps", "4", "--checkpoints_total_limit", "1"]) == 0
    assert "could not be deleted" in (folder.root / "log" / "log.txt").read_text()
    assert folder.checkpoints() == [folder.checkpoint(4)]


def test_folders_that_are_no_checkpoints_do_not_count_and_stay(flags, folder):
    """An empty step_000099 once counted, so a real checkpoint was deleted; step_² was no number."""
    others = [folder.ckpts / name for name in ("step_000099", "step_²", "step_٣", "step_x", "step_000001_old")]
    assert train.main([*flags, "--max_steps", "2"]) == 0
    for other in others:
        other.mkdir()
    (folder.ckpts / "step_000001").touch()
    more = [*flags, "--checkpoints_total_limit", "2", "--resume_from_checkpoint", "latest"]
    assert train.main([*more, "--max_steps", "6"]) == 0
    assert folder.checkpoints() == [folder.checkpoint(4), folder.checkpoint(6)]
    assert folder.latest() == folder.checkpoint(6) and all(path.is_dir() for path in others)


def test_a_complete_cache_may_be_read_only(flags, tmp_path, monkeypatch, capsys):
    """A complete cache is only read. An incomplete cache is an error in one line."""
    cache = tmp_path / "cache"
    cached = [*flags, "--cache_text_embeddings", str(cache), "--max_steps", "2"]
    assert train.main(cached) == 0
    (file,) = cache.glob("shard_*")
    access = os.access
    monkeypatch.setattr("dpdmd.utils.paths.os.access", lambda path, mode: Path(path) != cache and access(path, mode))
    written = file.stat().st_mtime_ns
    again = [*cached, "--run_dir", str(tmp_path / "again")]
    assert train.main(again) == 0 and file.stat().st_mtime_ns == written
    (tmp_path / "other.txt").write_text("another prompt")
    capsys.readouterr()
    assert train.main([*cached, "--run_dir", str(tmp_path / "b"), "--prompt_txt", str(tmp_path / "other.txt")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"--cache_text_embeddings {cache}: {cache} is not writable, and this run needs to add 1 of 1 files" in line
    assert [path.name for path in cache.iterdir()] == [file.name]


def test_files_of_a_file_manager_leave_a_run_folder_unused(flags, folder):
    folder.create()
    for name in (".DS_Store", "._log", "Thumbs.db"):
        (folder.root / name).touch()
    assert not folder.flag_in_use()
    assert train.main([*flags, "--max_steps", "1"]) == 0
