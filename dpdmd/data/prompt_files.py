"""Read the prompts of a file, by its ending: text, or a format with columns (`prompt_tables.py`). Imports no torch."""

import csv
import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

from dpdmd.data.prompt_columns import ADVICE, CANDIDATES, Columns, prompts_of_table
from dpdmd.data.prompt_tables import READERS, is_dataset, lines_of, read_dataset
from dpdmd.utils.text_files import (
    MAX_PROMPT_LETTERS,
    check_prompt_length,
    is_visible,
    reading_long_values,
    require_regular,
)

_NUMBERING = re.compile(r"^\d+ -(?: |$)")
_BINARY = (".parquet", ".pq")
COLUMN_HELP = "column of a prompt file that has columns (default: the one named prompt, caption or text)"
_LINE_ENDS = "save the file with one kind of line end, such as LF"
_SNIFFED = 4096  # bytes at a file's start that show what it is
_ZIP = "is a zip file, as Excel and Word write; save its prompts as text or .csv"
_COMPRESSED = "is compressed; decompress it"
_OTHER_FILES = {
    b"version https://git-lfs": "is a git-lfs pointer; fetch the file with `git lfs pull`",
    b"{\\rtf": "is RTF; save it as plain text",
    b"%PDF-": "is PDF; save its prompts as text",
    b"PK\x03\x04": _ZIP,
    b"\xd0\xcf\x11\xe0": "is an old Excel or Word file; save its prompts as text or .csv",
    b"\x1f\x8b": _COMPRESSED,
    b"BZh91AY&SY": _COMPRESSED,
    b"\xfd7zXZ\0": _COMPRESSED,
    b"7z\xbc\xaf\x27\x1c": _COMPRESSED,
    b"\x28\xb5\x2f\xfd": _COMPRESSED,
}
_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:(\?xml)|!doctype\s+html|html)\b", re.IGNORECASE)
_PARQUET = "Parquet; name the file .parquet"
_NO_TEXT = {
    rb"\x89PNG\r\n": f"a PNG image; {ADVICE}",
    rb"\xff\xd8\xff": f"a JPEG image; {ADVICE}",
    rb"GIF8[79]a": f"a GIF image; {ADVICE}",
    rb"RIFF.{4}(?:WEBP|WAVE|AVI )": f"an image, a sound or a film; {ADVICE}",
    rb"SQLite format 3\0": "an SQLite database; save its prompts as text or .csv",
    rb"PAR1": _PARQUET,
    rb"ARROW1\0": "an Arrow file; give the folder that `datasets` saved, or save its prompts as text or .csv",
    rb"\x93NUMPY": f"a NumPy array; {ADVICE}",
    rb"\x80[\x02-\x05]": f"a pickle; {ADVICE}",
    rb"PK\x03\x04.{26}[^/]+/data\.pkl": f"a torch checkpoint; {ADVICE}",
    rb".{5}\0\0\0\{\"": f"a safetensors file; {ADVICE}",
}
_BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def read_prompts(path: Path, flag: str = "--prompt_txt", column: str | None = None) -> list[str]:
    """Read the prompts of a file, in file order.

    A .csv, .tsv, .json, .jsonl or .parquet file, or a folder that `datasets` saved, has columns: `column`, or the one
    named prompt, caption or text, contains the prompts. A line break inside a prompt becomes a space.

    Any other file is text with one prompt per line, and `column` is ignored. A leading number such as "12 - " is
    removed. Only line ends separate prompts: characters such as U+2028 are part of a prompt.

    Text files of all formats are UTF-8, with or without a byte-order mark, with LF, CRLF or CR line ends, not with both
    LF and CR alone. Prompts that are blank or only invisible characters are skipped.

    Raises:
        ValueError: missing, unreadable, not UTF-8, not in its format, another kind of file, without the column, without
            any prompt, or with a prompt of more than MAX_PROMPT_LETTERS; the message names `flag` and the file.
    """
    return _read_explained(path, flag, Columns(column))[0]


def read_weighted_prompts(path: Path, column: str | None, weight_column: str) -> tuple[list[str], array]:
    """Read the prompts of a file with columns, as `read_prompts`, and how often each is drawn, relative to the others.

    Prompts of weight 0 are left out.

    Raises:
        ValueError: as `read_prompts`; or text without columns, or a weight that is not a finite number, at least 0.
    """
    return _read_explained(path, "--prompt_txt", Columns(column, weight_column))


def _read_explained(path: Path, flag: str, columns: Columns) -> tuple[list[str], array]:
    """Read prompts and weights; errors name `flag` and the file."""
    try:
        prompts, weights = _read(path, columns)
    except UnicodeDecodeError:
        raise ValueError(f"{flag} {path}: {_encoding_fault(path.read_bytes())}; save the file as UTF-8") from None
    except OSError as error:
        raise ValueError(f"{flag} {path}: cannot be read ({error.strerror or error}); {ADVICE}") from None
    except ValueError as error:
        raise ValueError(f"{flag} {path}: {error}") from None
    if not prompts:
        raise ValueError(f"{flag} {path}: no prompt in it; {ADVICE}")
    return prompts, weights


def _read(path: Path, columns: Columns) -> tuple[list[str], array]:
    weighted = columns.weight is not None
    if is_dataset(path):
        return prompts_of_table(read_dataset(path, columns), "row", weighted=weighted)
    require_regular(path)
    ending = path.suffix.lower()
    _check_start(path, text=ending not in _BINARY)
    if ending in (".yaml", ".yml"):
        raise ValueError(f"is YAML; {ADVICE}, or .csv, .tsv, .json, .jsonl or .parquet")
    if ending in READERS:
        unit, reader = READERS[ending]
        return prompts_of_table(reader(path, columns), unit, weighted=weighted)
    prompts = list(_text_lines(path))
    if prompts and _is_json(path, prompts[0]):
        raise ValueError(f"is JSON; {ADVICE}, or name the file .json or .jsonl")
    if _is_csv(prompts[:2]):
        raise ValueError("its first line is the header of a CSV file; name the file .csv")
    if weighted:
        raise ValueError("is text without columns; leave out --prompt_weight_column, or give a file with that column")
    return prompts, array("d")


def _text_lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(lines_of(file), 1):
            if "\0" in line:
                raise ValueError(f"holds zero bytes; {ADVICE}")
            if len(line) > MAX_PROMPT_LETTERS:
                check_prompt_length(line.rstrip("\n"), f"line {number}")
            prompt = line.strip()
            if "\r" in prompt:
                raise ValueError(f"line {number} is several lines, parted by CR alone; {_LINE_ENDS}")
            if prompt[:1].isdigit():
                prompt = _NUMBERING.sub("", prompt).strip()
            if is_visible(prompt):
                yield prompt


def _is_json(path: Path, first: str) -> bool:
    """Return whether a text file or its first prompt is a JSON list or object. Other texts are not parsed."""
    if not first.startswith(("[", "{")):
        return False
    for text in (first, path.read_text(encoding="utf-8-sig")):
        try:
            if isinstance(json.loads(text), list | dict):
                return True
        except (ValueError, RecursionError):
            continue
    return False


def _is_csv(lines: list[str]) -> bool:
    """Return whether the first two lines are a header with a column of prompts, and a row of as many values."""
    for sign in ",;\t":
        with reading_long_values():
            header, *rows = [*csv.reader(lines, delimiter=sign), []]
        names = [name.lower() for name in header]  # "text, logo" is a prompt: no CSV has a blank after its commas
        plain = all(name.isidentifier() for name in names if name)  # pandas gives the column of its index no name
        if len(names) > 1 and plain and set(names) & set(CANDIDATES) and len(rows[0]) == len(names):
            return True
    return False


def _check_start(path: Path, *, text: bool) -> None:
    """Check that a file's first bytes are not of another kind of file, nor UTF-16 or UTF-32 in place of `text`.

    Raises:
        ValueError: it is compressed, an image, an HTML page or the like; or it begins with a byte-order mark of UTF-16
            or UTF-32, or every other byte is zero, as in UTF-16 without a mark.
    """
    with path.open("rb") as file:
        start = file.read(_SNIFFED)
    for sign, kind in _NO_TEXT.items():
        if re.match(sign, start, re.DOTALL) and (text or kind != _PARQUET):
            raise ValueError(f"is no text but {kind}")
    if other := next((fault for sign, fault in _OTHER_FILES.items() if start.startswith(sign)), None):
        raise ValueError(other)
    if page := _PAGE.match(start):
        kind = "XML" if page[1] else "an HTML page"
        raise ValueError(f"is {kind}, as sites send in place of a file; download the file itself")
    if not text:
        return
    name = next((name for mark, name in _BYTE_ORDER_MARKS.items() if start.startswith(mark)), None)
    halves = start[::2], start[1::2]
    if name is None and any(half.count(0) > 0.9 * len(half) for half in halves):
        name = "UTF-16"
    if name:
        raise ValueError(f"is {name}, not UTF-8; save the file as UTF-8")


def _encoding_fault(content: bytes) -> str:
    """Return what is wrong with bytes that are not UTF-8: the first line, and Windows-1252 if they look like it.

    They look like it if they decode to text without control characters, and at most a quarter of a line's letters is
    not ASCII. Other single-byte encodings, such as of Cyrillic, use bytes above 127 for most letters.
    """
    try:
        content.decode()
        return "is not UTF-8"  # the file was changed since it was read
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        line = content[content.rfind(b"\n", 0, error.start) + 1 :].split(b"\n", 1)[0]
    fault = f"line {number} is not UTF-8"
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").decode("cp1252").replace("\t", " ").strip()
    except UnicodeDecodeError:
        return fault
    high = sum(not letter.isascii() for letter in text)
    return f"{fault} but looks like Windows-1252" if text.isprintable() and high * 4 <= len(text) else fault
