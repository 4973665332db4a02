"""Text files read whole, and what is told of them in one line. Imports nothing heavy.

A pipe or a device in place of a file would keep the reader waiting for ever, or never end; and on several ranks, or
read a second time, a pipe holds nothing any more. So only regular files are read.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IN_BRACKETS = 160  # letters


def require_regular(path: Path) -> None:
    """Check that a path is a file that can be read again and again.

    Raises:
        OSError: missing, a folder, a pipe or a device.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "No regular file but a pipe or a device", str(path))


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """All of a file's text.

    Raises:
        OSError: missing, unreadable, or no regular file.
        UnicodeDecodeError: it is in another encoding.
    """
    require_regular(path)
    return path.read_text(encoding=encoding)


def one_line(told: object) -> str:
    """An error's text for a terminal: a line break or a control character, as a path may hold, stands as its escape."""
    letters = (
        letter if letter == " " or letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(told)
    )
    return "".join(letters)


def shorten_error(error: BaseException) -> str:
    """A library's error for the brackets of ours: on one line; of a long one its first sentence, cut at IN_BRACKETS."""
    told = " ".join(str(error).split()) or type(error).__name__
    return told if len(told) <= IN_BRACKETS else told.partition(". ")[0][:IN_BRACKETS]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: missing, unreadable, or no JSON object; the message names the file.
    """
    try:
        value = json.loads(read_text(path))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:  # also a number of more digits than Python reads
        raise ValueError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


@contextmanager
def expecting_mapping_keys(path: Path) -> Iterator[None]:
    """Name the file whose values do not let us compute with them."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}") from None
    except (AttributeError, ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds what is not expected ({type(error).__name__}: {error})") from None


def read_any_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ValueError: it holds none; the message names it.
    """
    try:
        return json.loads(read_text(path))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error})") from None
