"""Read the prompts of formats with columns: CSV, TSV, JSON, JSON lines, Parquet, and folders that `datasets` saved.

A reader yields (number, value) for each row. Errors name neither the flag nor the file: `read_prompts` adds them.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dpdmd.utils.text_files import MAX_PROMPT_LETTERS, check_prompt_length

CANDIDATES = ("prompt", "caption", "text")
ADVICE = "give a text file, one prompt per line"
_BATCH = 65_536  # rows of a Parquet file in memory at a time
_SHOWN = 20  # columns named in an error
_LINE_BREAK = re.compile(r"\s*[\r\n]\s*")
Rows = Iterator[tuple[int, Any]]
Choose = Callable[[Sequence[str]], str]


def choose_column(names: Sequence[str], wanted: str | None) -> str:
    """Return the column of the prompts: `wanted`, or the only one whose name is in CANDIDATES, in any case.

    Raises:
        ValueError: no such column, or several.
    """
    listed = ", ".join(repr(name[:40]) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    if wanted is not None and wanted not in names:
        raise ValueError(f"has no column {wanted!r} (--prompt_column); its columns are {listed}")
    found = [name for name in names if (name.strip().lower() in CANDIDATES if wanted is None else name == wanted)]
    if not found:
        raise ValueError(f"no column is named {', '.join(CANDIDATES)}; give --prompt_column, one of {listed}")
    if len(set(found)) > 1:
        raise ValueError(f"several columns may be the prompts; give --prompt_column, one of {', '.join(found)}")
    if len(found) > 1:
        raise ValueError(f"{len(found)} columns are named {found[0]!r}; rename all but one")
    return found[0]


def prompts_of_table(rows: Iterable[tuple[int, Any]], unit: str) -> list[str]:
    """Return the prompts of rows. A line break becomes a space, and empty values are skipped.

    Raises:
        ValueError: a value is not text, is not Unicode, contains zero bytes, or is longer than a prompt.
    """
    prompts = []
    for number, value in rows:
        if value is None:
            continue
        if not isinstance(value, str):
            raise ValueError(f"{unit} {number}: the prompt is of type {type(value).__name__}, not text")
        if "\0" in value:
            raise ValueError(f"{unit} {number} holds zero bytes")
        if len(value) > MAX_PROMPT_LETTERS:
            check_prompt_length(value, f"{unit} {number}")
        prompt = value.strip()
        if "\n" in prompt or "\r" in prompt:
            prompt = _LINE_BREAK.sub(" ", prompt)
        if not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
            raise ValueError(f"{unit} {number} holds half of a surrogate pair, which is not Unicode text")
        if any(letter.isprintable() and not letter.isspace() for letter in prompt):
            prompts.append(prompt)
    return prompts


def read_csv(path: Path, choose: Choose) -> Rows:
    """Yield (line number, prompt) of a CSV file with a header. The header shows if commas, semicolons or tabs separate.

    Raises:
        ValueError: a quote that is not closed, or a row with more or fewer values than the header.
    """
    yield from _separated(path, choose, ",;\t")


def read_tsv(path: Path, choose: Choose) -> Rows:
    """Yield (line number, prompt) of a file with tabs between columns, a header, and quotes as in CSV."""
    yield from _separated(path, choose, "\t")


def _separated(path: Path, choose: Choose, separators: str) -> Rows:
    rows = separated_rows(path, separators)
    if (header := next(rows, None)) is None:
        return
    place = header[1].index(choose(header[1]))
    yield from ((number, row[place]) for number, row in rows)


def separated_rows(path: Path, separators: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, values) of the header and of each row. The header shows which of `separators` is used.

    Raises:
        ValueError: a quote that is not closed, or a row with more or fewer values than the header.
    """
    limit = csv.field_size_limit(2**31 - 1)  # the default is less than MAX_PROMPT_LETTERS, which is checked later
    number = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            counts = {sign: len(next(csv.reader([header], delimiter=sign), [])) for sign in separators}
            file.seek(0)
            rows = csv.reader(file, delimiter=max(counts, key=counts.__getitem__), strict=True)
            names = next(rows, None)
            if not names:
                return
            yield number, names
            for row in rows:
                number = rows.line_num
                if len(row) == len(names):
                    yield number, row
                elif row:
                    advice = "a value that contains the separator needs quotes"
                    raise ValueError(f"line {number} has {len(row)} values, the header {len(names)}; {advice}")
    except csv.Error as error:
        advice = "close each quote, and write a quote inside quotes twice"
        raise ValueError(f"the row after line {number} is not valid ({error}); {advice}") from None
    finally:
        csv.field_size_limit(limit)


def read_json(path: Path, choose: Choose) -> Rows:
    """Yield (item number, prompt) of a JSON list of texts or objects, or of an object with a list of texts.

    A file with one JSON value per line is read as JSON lines.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise ValueError(f"is not JSON ({error})") from None
        yield from read_json_lines(path, choose)
        return
    except RecursionError:
        raise ValueError("is not JSON of prompts (nested too deeply)") from None
    if isinstance(value, dict):
        column = value[choose(list(value))]
        value = column if isinstance(column, list) else [column]
    if not isinstance(value, list):
        raise ValueError(f"is JSON of type {type(value).__name__}; give a list of texts or objects")
    yield from _json_values(enumerate(value, 1), choose)


def read_json_lines(path: Path, choose: Choose) -> Rows:
    """Yield (line number, prompt) of a file with one JSON text or object per line."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        yield from _json_values(((n, _parsed(line, n)) for n, line in enumerate(file, 1) if not line.isspace()), choose)


def _parsed(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is not JSON ({error})") from None


def _json_values(items: Rows, choose: Choose) -> Rows:
    """Yield the prompts of texts and objects. The first object decides the column."""
    column = None
    for number, item in items:
        if isinstance(item, dict):
            column = choose(list(item)) if column is None else column
            if column not in item:
                raise ValueError(f"object {number} has no {column!r}")
            item = item[column]
        yield number, item


def read_parquet(path: Path, choose: Choose) -> Rows:
    """Yield (row number, prompt) of a Parquet file. Only its column is read."""
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            column = _text_column(file.schema_arrow, choose)
            batches = file.iter_batches(_BATCH, columns=[column], use_threads=False)
            yield from enumerate((value for batch in batches for value in batch.column(0).to_pylist()), 1)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"is not a whole Parquet file ({error})") from None


def is_dataset(path: Path) -> bool:
    """Return whether a path is a folder that `save_to_disk` of `datasets` wrote."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def read_dataset(path: Path, choose: Choose) -> Rows:
    """Yield (row number, prompt) of a folder that `save_to_disk` of `datasets` wrote.

    Raises:
        ValueError: it has several splits, or a file is damaged.
    """
    if (path / "dataset_dict.json").is_file():
        splits = sorted(each.parent.name for each in path.glob("*/state.json"))
        raise ValueError(f"is a folder of splits; give the folder of one: {', '.join(splits)}")
    try:
        files = [path / each["filename"] for each in json.loads((path / "state.json").read_text())["_data_files"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"state.json does not list the files of a dataset ({type(error).__name__})") from None
    yield from enumerate((value for file in files for value in _arrow_values(file, choose)), 1)


def _arrow_values(path: Path, choose: Choose) -> Iterator[str | None]:
    pyarrow = _pyarrow()
    try:
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as stream:
            column = _text_column(stream.schema, choose)
            for batch in stream:
                yield from batch.column(batch.schema.get_field_index(column)).to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not a whole Arrow file ({error})") from None


def _text_column(schema: Any, choose: Choose) -> str:
    """Return the column of the prompts in a schema of pyarrow.

    Raises:
        ValueError: it is not text.
    """
    column = choose(schema.names)
    kind = schema.field(column).type
    if not re.search(r"\bstring|\blarge_string|string_view", str(kind)) or kind.num_fields:
        raise ValueError(f"column {column!r} is of type {kind}, not text")
    return column


def _pyarrow() -> Any:
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ValueError("reading it needs the package pyarrow; pip install 'dpdmd[data]'") from None
    return pyarrow


READERS: dict[str, tuple[str, Callable[[Path, Choose], Rows]]] = {
    ".csv": ("line", read_csv),
    ".tsv": ("line", read_tsv),
    ".json": ("item", read_json),
    ".jsonl": ("line", read_json_lines),
    ".ndjson": ("line", read_json_lines),
    ".parquet": ("row", read_parquet),
    ".pq": ("row", read_parquet),
}
