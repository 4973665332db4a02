"""Folders on file systems of other people: their umask, no links, no write permission."""

import errno
import os
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from dpdmd.utils import folders
from dpdmd.utils.folders import (
    copy_tree,
    creating_folder,
    delete_tree,
    finish_folder,
    link_by_name,
    link_or_copy,
    supports_links,
)
from dpdmd.utils.paths import expanded, is_system_file, linked_name


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=[0o022, 0o002, 0o027, 0o077])
def umask(request):
    old = os.umask(request.param)
    yield request.param
    os.umask(old)


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path):
    """The leftover of a killed process is replaced, and a folder of that name is not."""
    (tmp_path / ".folder.tmp" / "old").mkdir(parents=True)
    with creating_folder(tmp_path / "folder") as folder:
        folder.mkdir()
        (folder / "new").touch()
        assert not (tmp_path / "folder").exists()
    with pytest.raises(OSError), creating_folder(tmp_path / "folder") as folder:
        folder.mkdir()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["folder", "folder/new"]


def test_a_failed_folder_is_deleted(tmp_path):
    with pytest.raises(RuntimeError), creating_folder(tmp_path / "folder") as folder:
        folder.mkdir()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_files_of_a_new_folder_follow_the_umask(tmp_path, umask):
    """safetensors makes files of mode 0600, which no colleague can read. Links and their targets stay as they are."""
    (tmp_path / "outside").touch(0o600)
    (tmp_path / "outside").chmod(0o600)
    with creating_folder(tmp_path / "model") as folder:
        (folder / "below").mkdir(parents=True)
        save_file({"weight": torch.zeros(2)}, folder / "below" / "model.safetensors")
        (folder / "config.json").touch()
        (folder / "config.json").chmod(0o444)
        (folder / "link").symlink_to(tmp_path / "outside")
    found = tmp_path / "model"
    assert mode(found) == mode(found / "below") == 0o777 & ~umask
    assert mode(found / "below" / "model.safetensors") == mode(found / "config.json") == 0o666 & ~umask
    assert mode(tmp_path / "outside") == 0o600


def test_a_file_system_without_permissions_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    (tmp_path / "file").touch(0o600)
    monkeypatch.setattr(os, "chmod", refuse)
    finish_folder(tmp_path)


@pytest.mark.parametrize(("number", "failing"), [(errno.EINVAL, None), (errno.ENOSPC, OSError), (errno.EIO, OSError)])
def test_a_folder_that_cannot_be_flushed(tmp_path, monkeypatch, number, failing):
    """SMB has no fsync of a folder. A full disk and a broken one are errors."""
    (tmp_path / "file").touch()
    fsync = os.fsync

    def folders_fail(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", folders_fail)
    if failing:
        with pytest.raises(failing):
            finish_folder(tmp_path, sync=True)
    else:
        finish_folder(tmp_path, sync=True)


def test_a_copy_of_a_read_only_folder_can_be_written_and_deleted(tmp_path, umask):
    source = tmp_path / "teacher"
    (source / "below").mkdir(parents=True)
    (source / "below" / "file").write_text("content")
    (source / "link").symlink_to(source / "below" / "file")
    (source / "below" / "file").chmod(0o444)
    for folder in (source / "below", source):
        folder.chmod(0o555)
    copy_tree(source, tmp_path / "copy")
    copied = tmp_path / "copy"
    assert mode(copied) == mode(copied / "below") == 0o777 & ~umask
    assert mode(copied / "below" / "file") == mode(copied / "link") == 0o666 & ~umask
    assert (copied / "link").read_text() == "content" and not (copied / "link").is_symlink()
    assert mode(source) == 0o555


def test_a_folder_without_write_permission_is_deleted(tmp_path):
    """Also one that an older version copied from a read-only teacher. Runs as a user whom permissions bind."""
    (tmp_path / "run" / "old" / "below").mkdir(parents=True)
    (tmp_path / "run" / "old" / "below" / "file").touch()
    (tmp_path / "run" / "old" / "below").chmod(0o555)
    (tmp_path / "run" / "old").chmod(0o555)
    for folder in (tmp_path, tmp_path / "run"):
        folder.chmod(0o777)
    if os.getuid():
        delete_tree(tmp_path / "run" / "old")
    else:
        _delete_as_nobody(tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    delete_tree(tmp_path / "run" / "old")  # that it is gone already is no error


def test_of_a_link_to_a_folder_the_link_is_deleted(tmp_path):
    """A user may move a checkpoint to another disk."""
    (tmp_path / "elsewhere").mkdir()
    for name in ("elsewhere", "nowhere"):
        (tmp_path / "link").symlink_to(tmp_path / name)
        delete_tree(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]


def _delete_as_nobody(run):
    for path in [run, *run.rglob("*")]:
        os.chown(path, 65534, 65534)
    code = "import os, sys, shutil; from pathlib import Path; from dpdmd.utils.folders import delete_tree\n"
    code += "os.chdir(sys.argv[1]); os.setuid(65534)\n"
    code += "try: shutil.rmtree('old')\nexcept PermissionError: pass\nelse: sys.exit('permissions do not bind')\n"
    code += "delete_tree(Path('old'))"
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)


def test_without_links_folders_are_copied_and_names_are_text(tmp_path, no_links):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("content")
    link_or_copy(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy" / "file").read_text() == "content"
    link_by_name("source", tmp_path / "latest")
    assert (tmp_path / "latest").read_text() == "source\n" and linked_name(tmp_path / "latest") == "source"
    assert not supports_links(tmp_path)
    assert expanded(f"{tmp_path}/latest/file") == f"{tmp_path}/source/file"


def test_with_links_folders_are_linked(tmp_path):
    (tmp_path / "source").mkdir()
    link_or_copy(tmp_path / "source", tmp_path / "copy")
    link_by_name("source", tmp_path / "latest")
    assert os.readlink(tmp_path / "copy") == str(tmp_path / "source") and linked_name(tmp_path / "latest") == "source"
    assert supports_links(tmp_path)
    assert expanded(f"{tmp_path}/latest/file") == f"{tmp_path}/latest/file"
    assert {path.name for path in tmp_path.iterdir()} == {"source", "copy", "latest"}


def test_a_full_disk_is_an_error_and_not_a_missing_feature(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "symlink", full)
    for link in (lambda: link_or_copy(tmp_path, tmp_path / "a"), lambda: link_by_name("x", tmp_path / "b")):
        with pytest.raises(OSError, match="No space left"):
            link()
    assert not list(tmp_path.iterdir()) and folders.supports_links(tmp_path)


@pytest.mark.parametrize("content", ["", "a/b", "two\nlines", "x" * 300, b"\xff\xfe"])
def test_another_file_is_no_link(tmp_path, content):
    path = tmp_path / "latest"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert linked_name(path) is None and expanded(f"{path}/student") == f"{path}/student"
    assert linked_name(tmp_path / "missing") is None and linked_name(tmp_path) is None


@pytest.mark.parametrize("name", [".DS_Store", "._0.png", "Thumbs.db", "desktop.ini", ".nfs0001", "__MACOSX/0.png"])
def test_files_of_file_managers(tmp_path, name):
    assert is_system_file(tmp_path / name)
    assert not is_system_file(tmp_path / "0.png") and not is_system_file(tmp_path / ".config")
