"""Paths as a user gives them, and whether a folder can be made and written to, told before hours of work need it.

Imports nothing heavy.
"""

import argparse
import os
import tempfile
from pathlib import Path

PIPELINE = "model_index.json"  # what makes a folder a model's


def expanded(text: str) -> str:
    """A path with a leading ~ as the shell would have it, which after --flag= leaves it alone.

    Raises:
        ValueError: ~name of nobody whose home is known; a folder called so would be made otherwise.
    """
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(f"{text}: {path.partition('/')[0]} is nobody's home; write ./~ for a folder called so")
    return path


def user_path(text: str) -> Path:
    """A path as the value of a flag.

    Raises:
        argparse.ArgumentTypeError: empty, or ~name of nobody.
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is empty; give a path, or leave it out")
    if "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no path")
    try:
        return Path(expanded(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_writable(flag: str, path: Path) -> None:
    """Check that `path` is a folder that can be written to, or that one can be made there, outside of any model.

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
    try:
        with tempfile.TemporaryFile(dir=nearest):  # root may write anywhere, by its rights, but not in /proc
            pass
    except OSError as error:
        raise ValueError(f"{flag} {path}: {nearest} cannot be written to ({error.strerror})") from None
    if model := next((place for place in _upwards(path.resolve()) if (place / PIPELINE).is_file()), None):
        raise ValueError(f"{flag} {path}: lies in a model's folder, {model}, which stays as it is; give another folder")


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next(place for place in _upwards(path.absolute()) if place.exists())


def _upwards(path: Path) -> tuple[Path, ...]:
    return (path, *path.parents)
