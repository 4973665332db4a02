"""Write files and folders completely or not at all: under a temporary name, which is renamed at the end.

A temporary file is locked while it is written. If the process is killed, the file stays but its lock is gone, so a
later process, on this machine or another, can delete it without harm to a file that is still being written. Imports
nothing heavy.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

LEFTOVERS = ".*.[0-9]*.tmp"  # temporary files of `replacing`
_unfinished: set[Path] = set()


def temporary_path(path: Path) -> Path:
    """Return the temporary name of a folder or a link."""
    return path.with_name(f".{path.name}.tmp")


def is_temporary(path: Path) -> bool:
    """Return whether a path has a temporary name."""
    return path.match(".*.tmp")


@contextmanager
def delete_on_failure(path: Path) -> Iterator[Path]:
    """Delete the file or folder `path` if the block fails or a signal ends the program.

    A path that the block has renamed stays under its new name.
    """
    _unfinished.add(path)
    try:
        yield path
    except BaseException:
        _delete(path)
        raise
    finally:
        _unfinished.discard(path)


def delete_unfinished() -> None:
    """Delete every path that a block of `delete_on_failure` is writing. Called before a signal ends the process."""
    for path in list(_unfinished):
        _delete(path)


def _delete(path: Path) -> None:
    with suppress(OSError):  # the path may not exist, and the error to report is that of the block
        if path.is_dir() and not path.is_symlink():
            import shutil  # imports three compression libraries, which would delay a program's signal handlers

            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def replacing(path: Path, *, sync: bool = False) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` at the end of the block. If the block fails, `path` is unchanged.

    Args:
        sync: flush the file to disk before the rename, so that it also survives a crash of the machine.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two ranks may write the same file, and those of two containers may have the same process id.
    temporary_file = path.with_name(f".{path.name}.{int.from_bytes(os.urandom(4))}.tmp")
    with delete_on_failure(temporary_file) as temporary, _open_locked(temporary) as file:
        yield file
        file.flush()
        if sync:
            os.fsync(file.fileno())
        os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Replace a text file. Readers find the old or the new text, even after a kill or a crash of the machine."""
    with replacing(path, sync=True) as file:
        file.write(text.encode())


def write_json(
    path: Path, value: Any, *, ensure_ascii: bool = True, default: Callable[[Any], Any] | None = None
) -> None:
    """Replace a JSON file, as `write_text` does; `ensure_ascii` and `default` are those of `json.dumps`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=ensure_ascii, default=default) + "\n")


def _open_locked(path: Path) -> IO[bytes]:
    """Open a new file that `clear_leftovers` does not delete until it is closed."""
    while True:
        file = path.open("wb")
        _lock(file)
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass  # deleted by another process before it was locked
        file.close()


def _lock(file: IO[bytes]) -> bool:
    """Lock a file. Return False if another process holds the lock, or if the file system has no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def clear_leftovers(folders: Iterable[Path]) -> None:
    """Delete the temporary files in these folders, without subfolders, that no process is writing."""
    for path in (found for folder in folders for found in folder.glob(LEFTOVERS)):
        try:
            with path.open("r+b") as file:
                if _lock(file):
                    path.unlink(missing_ok=True)
        except OSError:
            continue  # not a file, not writable, or deleted by another process
