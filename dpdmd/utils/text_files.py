"""Read small text and JSON files. Imports nothing heavy.

Only regular files are read. A read of a pipe or a device could wait forever or never end, and a pipe is empty when
another rank, or a second check, reads it.
"""

import csv
import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_PROMPT_LETTERS = 200_000  # a tokenizer needs half a second for as many


def require_regular(path: Path) -> None:
    """Check that a path is a regular file.

    Raises:
        OSError: missing, a folder, a pipe or a device.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "No regular file but a pipe or a device", str(path))


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Read a text file.

    Raises:
        OSError: missing, unreadable, or not a regular file.
        UnicodeDecodeError: it has another encoding.
    """
    require_regular(path)
    return path.read_text(encoding=encoding)


@contextmanager
def reading_long_values() -> Iterator[None]:
    """Let the module csv read values of any length; its default is less than MAX_PROMPT_LETTERS."""
    limit = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def check_prompt_length(prompt: str, place: str) -> None:
    """Check that a prompt is not a whole document. A tokenizer reads all of it before it keeps the first few hundred
    tokens, and needs a minute for some million letters.

    Raises:
        ValueError: one line that begins with `place`.
    """
    if len(prompt) > MAX_PROMPT_LETTERS:
        raise ValueError(
            f"{place} has {len(prompt):,} letters, and a prompt has at most {MAX_PROMPT_LETTERS:,}; "
            "is a line break between prompts missing?"
        )


def is_utf8(text: str) -> bool:
    """Return whether a text from outside is UTF-8: Python decodes other bytes, also of file names, to surrogates."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def is_visible(text: str) -> bool:
    """Return whether a text has a letter that can be seen."""
    return any(letter.isprintable() and not letter.isspace() for letter in text)


def check_prompt(prompt: str, place: str) -> None:
    """Check that a prompt from outside a file is text, is not empty, and is not a whole document.

    Raises:
        ValueError: one line that begins with `place`.
    """
    if not is_utf8(prompt):
        raise ValueError(f"{place} {ascii(prompt)[:60]}: is not UTF-8")
    if not is_visible(prompt):
        raise ValueError(f"{place}: is empty")
    check_prompt_length(prompt, f"{place} {prompt[:60]}...:")


def read_any_json(path: Path) -> Any:
    """Read the value of a JSON file.

    Raises:
        ValueError: missing, unreadable, or not JSON; the message names the file.
    """
    try:
        return json.loads(read_text(path))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: also a number with too many digits
        raise ValueError(f"{path} cannot be read as JSON ({error})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ValueError: missing, unreadable, or not a JSON object; the message names the file.
    """
    value = read_any_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object")
    return value


def has_key(path: Path, *keys: str) -> bool:
    """Return whether a file holds a JSON object with one of these keys."""
    try:
        return not read_json(path).keys().isdisjoint(keys)
    except ValueError:
        return False


@contextmanager
def expecting_mapping_keys(path: Path) -> Iterator[None]:
    """Name the file in errors of a block that computes with its values.

    Raises:
        ValueError: a key is missing, or a value has the wrong type or range.
    """
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}") from None
    except (AttributeError, ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has unexpected values ({type(error).__name__}: {error})") from None
