"""Files that are there whole or not at all: written under a temporary name, locked meanwhile, then renamed.

A process that is killed leaves its temporary file behind, without the lock: so whoever comes next can tell it from one
that another process is writing, on this machine or another, and clears it. Imports nothing heavy.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dpdmd.utils.signals import delete_on_failure

LEFTOVERS = ".*.[0-9]*.tmp"  # what `replacing` calls its temporary files


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends; if it fails, `path` stays as it was.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # With the process's number: two ranks may make the same image.
    with delete_on_failure(path.with_name(f".{path.name}.{os.getpid()}.tmp")) as temporary, _locked(temporary) as file:
        yield file
        file.flush()
        os.replace(temporary, path)


def _locked(path: Path) -> IO[bytes]:
    """A new file that `clear_leftovers` leaves alone until it is closed."""
    while True:
        file = path.open("wb")
        _lock(file)
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass  # cleared between its making and its lock
        file.close()


def _lock(file: IO[bytes]) -> bool:
    """Whether nobody else has the lock; not known on a file system that has none, where nothing is cleared."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def clear_leftovers(folders: Iterable[Path]) -> None:
    """Delete the temporary files in these folders, not below them, that nobody is writing any more."""
    for path in (found for folder in folders for found in folder.glob(LEFTOVERS)):
        try:
            with path.open("r+b") as file:
                if _lock(file):
                    path.unlink(missing_ok=True)
        except OSError:
            continue  # no file, not ours, or cleared by another process: it is in nobody's way


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, and whoever comes after a kill, finds the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with delete_on_failure(temporary_path(path)) as temporary:
        with temporary.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def temporary_path(path: Path) -> Path:
    """Where a text or a link is until it is whole."""
    return path.with_name(f".{path.name}.tmp")
