"""Whether a folder can be made and written to, told before hours of work need it. Imports nothing heavy."""

import os
from pathlib import Path


def check_writable(flag: str, path: Path) -> None:
    """Check that `path` is a folder that can be written to, or that one can be made there.

    Raises:
        ValueError: it cannot; the message names `flag`.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # too long a name, a folder that may not be looked into
        raise ValueError(f"{flag} {path}: cannot be made ({error.strerror}); give another folder") from None
    nearest = existing(path)
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{flag} {path}: is a link that leads nowhere; give a folder")
    if not nearest.is_dir():
        raise ValueError(f"{flag} {path}: {nearest} is a file; give a folder")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{flag} {path}: {nearest} is not writable")


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
