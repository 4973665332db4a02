"""Write, copy and delete folders on file systems of any kind: any umask, without links, without write permission."""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dpdmd.utils.atomic_files import delete_on_failure, temporary_path

# Errors of a file system that has no symbolic links (exFAT, SMB, many FUSE drives), or no fsync of a folder.
_UNSUPPORTED = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextmanager
def creating_folder(path: Path) -> Iterator[Path]:
    """Rename the yielded folder, which the block creates, to `path` at the end of the block.

    Raises:
        OSError: `path` is a folder with content, or a file cannot be written.
    """
    with delete_on_failure(temporary_path(path)) as temporary:
        delete_tree(temporary)  # of a killed process
        yield temporary
        finish_folder(temporary)
        os.replace(temporary, path)


def finish_folder(folder: Path, *, sync: bool = False) -> None:
    """Give every file of a folder that this process made the permissions of a new file.

    safetensors makes files that only their owner can read, and other libraries may copy permissions. The permissions of
    the folder itself show the umask, which a thread cannot read without a change that other threads would see.

    Args:
        sync: flush the folder to disk, so that a later rename cannot reach the disk before its files.

    Raises:
        OSError: a file cannot be flushed.
    """
    mode = folder.stat().st_mode & 0o666
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink():
            continue
        if path.is_file() and stat.S_IMODE(path.stat().st_mode) != mode:
            with suppress(OSError):  # a file system without permissions: all files have those of the mount
                path.chmod(mode)
        if sync:
            _flush(path)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in _UNSUPPORTED):
            raise
    finally:
        os.close(handle)


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder, or a file, to a new path. Copies have the permissions of new files, and links become files.

    Raises:
        OSError: a file cannot be read or written.
    """
    if not source.is_dir():
        shutil.copyfile(source, target)
        return
    target.mkdir()
    for path in source.iterdir():
        copy_tree(path, target / path.name)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a link to `source`, or a copy if the file system has no links."""
    try:
        target.symlink_to(source)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        copy_tree(source, target)


def link_by_name(name: str, target: Path) -> None:
    """Make `target` a link to `name` beside it, or a text file with this name if the file system has no links."""
    try:
        target.symlink_to(name)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        target.write_text(f"{name}\n", encoding="utf-8")


def supports_links(folder: Path) -> bool:
    """Return whether symbolic links can be made in an existing folder."""
    trial = folder / f".link.{os.getpid()}.tmp"
    try:
        trial.unlink(missing_ok=True)
        trial.symlink_to("nowhere")
        trial.unlink()
    except OSError as error:
        return error.errno not in _UNSUPPORTED
    return True


def delete_tree(folder: Path) -> None:
    """Delete a folder, if it exists, also if it has no write permission. Of a link, delete the link alone.

    Raises:
        OSError: it cannot be deleted.
    """

    def retry(function: object, path: str, error: tuple[type, BaseException, object]) -> None:
        if isinstance(error[1], FileNotFoundError):
            return
        place = Path(path)
        for each in (place.parent, place):
            if each.is_relative_to(folder) and each.is_dir() and not each.is_symlink():
                each.chmod(each.stat().st_mode | stat.S_IRWXU)
        if function in (os.unlink, os.rmdir):
            function(path)
        else:  # the folder could not be opened or listed
            shutil.rmtree(path)

    if folder.is_symlink():
        folder.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, onerror=retry)
