"""Read the prompts of formats with columns: CSV, TSV, JSON, JSON lines, Parquet, and folders that `datasets` saved.

A reader yields (number, prompt, weight) for each row; without a column of weights, the weight is None. Errors name
neither the flag nor the file: `read_prompts` adds them.
"""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import Any, TextIO

from dpdmd.data.prompt_columns import Columns, fitting, listed
from dpdmd.utils.text_files import reading_long_values

_BATCH = 65_536  # rows of a Parquet file in memory at a time
Rows = Iterator[tuple[int, Any, Any]]


def read_csv(path: Path, columns: Columns) -> Rows:
    """Yield (line number, prompt, weight) of a CSV file with a header.

    The header shows if commas, semicolons or tabs separate.

    Raises:
        ValueError: a quote that is not closed, or a row with more or fewer values than the header.
    """
    yield from _separated(path, columns, ",;\t")


def read_tsv(path: Path, columns: Columns) -> Rows:
    """Yield (line number, prompt, weight) of a file with tabs between columns, a header, and quotes as in CSV."""
    yield from _separated(path, columns, "\t")


def _separated(path: Path, columns: Columns, separators: str) -> Rows:
    rows = separated_rows(path, separators)
    if (header := next(rows, None)) is None:
        return
    prompt, weight = columns.choose(header[1])
    place, other = header[1].index(prompt), None if weight is None else header[1].index(weight)
    yield from ((number, row[place], None if other is None else row[other]) for number, row in rows)


def separated_rows(path: Path, separators: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, values) of the header and of each row. The header shows which of `separators` is used.

    Raises:
        ValueError: a blank first line, a quote that is not closed, or a row with more or fewer values than the header.
    """
    number = 1
    try:
        with reading_long_values(), path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            if re.fullmatch(r"sep=.\s*", header, re.IGNORECASE):
                raise ValueError(f"line 1 is {header.strip()!r}, which Excel writes for itself; delete that line")
            if header and not header.strip():
                raise ValueError("line 1 is blank; the first line must have the names of the columns")
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


def read_json(path: Path, columns: Columns) -> Rows:
    """Yield (item number, prompt, weight) of a JSON list of texts or objects, or of an object with such a list.

    A file with one JSON value per line is read as JSON lines.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise ValueError(f"is not JSON ({error})") from None
        yield from read_json_lines(path, columns)
        return
    except RecursionError:
        raise ValueError("is not JSON of prompts (nested too deeply)") from None
    if isinstance(value, dict):
        value = _unpacked(value, columns)
    if not isinstance(value, list):
        raise ValueError(f"is JSON of type {type(value).__name__}; give a list of texts or objects")
    yield from _json_values(enumerate(value, 1), columns)


def _unpacked(table: dict[str, Any], columns: Columns) -> list[Any]:
    """Return the rows of an object: of its lists of values, or the one list of objects in it that has the column.

    The lists may be objects with numbers as keys, as pandas writes them. COCO's captions are in a list of objects.

    Raises:
        ValueError: no list has the column, or several, or the lists of values have different lengths.
    """
    if _is_numbered(table):
        return list(table.values())
    held = {name: list(each.values()) if _is_numbered(each) else each for name, each in table.items()}
    objects = {
        name: each for name, each in held.items() if isinstance(each, list) and each and isinstance(each[0], dict)
    }
    found = [name for name, rows in objects.items() if fitting(rows[0], columns.prompt)]
    own = fitting(held, columns.prompt)
    if own and not (found and all(isinstance(held[name], str) for name in own)):  # a text beside a list is its title
        return _rows_of_lists(held, columns)
    if len(found) > 1:
        raise ValueError(f"several lists in it have prompts: {listed(found)}; give a file with one of them")
    if not found:
        own = [name for name, each in held.items() if name not in objects and not isinstance(each, dict)]
        columns.choose(list(dict.fromkeys([*own, *(key for rows in objects.values() for key in rows[0])])))
    return objects[found[0]]


def _is_numbered(value: Any) -> bool:
    """Return whether a JSON value is an object whose keys are numbers: a list of pandas."""
    return isinstance(value, dict) and bool(value) and all(key.isdecimal() for key in value)


def _rows_of_lists(table: dict[str, Any], columns: Columns) -> list[Any]:
    """Return the rows of an object of lists: the prompts, or with weights objects of both columns.

    Raises:
        ValueError: the lists have different lengths.
    """
    prompt, weight = columns.choose(list(table))
    prompts, weights = (each if isinstance(each, list) else [each] for each in (table[prompt], table.get(weight)))
    if weight is None:
        return prompts
    if len(prompts) != len(weights):
        raise ValueError(f"{weight!r} has {len(weights)} values, {prompt!r} has {len(prompts)}")
    return [{prompt: text, weight: number} for text, number in zip(prompts, weights, strict=True)]


def read_json_lines(path: Path, columns: Columns) -> Rows:
    """Yield (line number, prompt, weight) of a file with one JSON text or object per line."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        lines = ((n, line) for n, line in enumerate(lines_of(file), 1) if line and not line.isspace())
        yield from _json_values(((n, _parsed(line, n)) for n, line in lines), columns)


def lines_of(file: TextIO) -> Iterator[str]:
    """Yield the lines of a file opened with newline="\\n". In a file of one such line, CR alone ends lines."""
    first, second = file.readline(), file.readline()
    if second:
        yield from chain((first, second), file)
    else:
        yield from first.split("\r")


def _parsed(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is not JSON ({error})") from None


def _json_values(items: Iterator[tuple[int, Any]], columns: Columns) -> Rows:
    """Yield the prompts of texts and objects, with their weights. The first object decides the columns."""
    column = weight = None
    for number, item in items:
        if not isinstance(item, dict):
            yield number, item, None
            continue
        if column is None:
            column, weight = columns.choose(list(item))
        for name in (column, weight):
            if name is not None and name not in item:
                raise ValueError(f"object {number} has no {name!r}")
        yield number, item[column], None if weight is None else item[weight]


def read_parquet(path: Path, columns: Columns) -> Rows:
    """Yield (row number, prompt, weight) of a Parquet file. Only its columns are read."""
    pyarrow = _pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as file:
            names = _text_column(file.schema_arrow, columns)
            batches = file.iter_batches(_BATCH, columns=[name for name in names if name], use_threads=False)
            yield from _numbered(_pairs(batches, names))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"is not a whole Parquet file ({error})") from None


def is_dataset(path: Path) -> bool:
    """Return whether a path is a folder that `save_to_disk` of `datasets` wrote."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def read_dataset(path: Path, columns: Columns) -> Rows:
    """Yield (row number, prompt, weight) of a folder that `save_to_disk` of `datasets` wrote.

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
    yield from _numbered(pair for file in files for pair in _arrow_values(file, columns))


def _arrow_values(path: Path, columns: Columns) -> Iterator[tuple[Any, Any]]:
    pyarrow = _pyarrow()
    try:
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as stream:
            yield from _pairs(stream, _text_column(stream.schema, columns))
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} is not a whole Arrow file ({error})") from None


def _pairs(batches: Iterable[Any], names: tuple[str, str | None]) -> Iterator[tuple[Any, Any]]:
    """Yield (prompt, weight) of record batches of pyarrow."""
    prompt, weight = names
    for batch in batches:
        weights = repeat(None) if weight is None else batch.column(weight).to_pylist()
        yield from zip(batch.column(prompt).to_pylist(), weights, strict=False)


def _numbered(pairs: Iterable[tuple[Any, Any]]) -> Rows:
    for number, (prompt, weight) in enumerate(pairs, 1):
        yield number, prompt, weight


def _text_column(schema: Any, columns: Columns) -> tuple[str, str | None]:
    """Return the columns of the prompts and of the weights in a schema of pyarrow.

    Raises:
        ValueError: the prompts are not text.
    """
    column, weight = columns.choose(schema.names)
    kind = schema.field(column).type
    if not re.search(r"\bstring|\blarge_string|string_view", str(kind)) or kind.num_fields:
        raise ValueError(f"column {column!r} is of type {kind}, not text")
    return column, weight


def _pyarrow() -> Any:
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ValueError("reading it needs the package pyarrow; pip install -e '.[data]'") from None
    return pyarrow


READERS: dict[str, tuple[str, Callable[[Path, Columns], Rows]]] = {
    ".csv": ("line", read_csv),
    ".tsv": ("line", read_tsv),
    ".json": ("item", read_json),
    ".jsonl": ("line", read_json_lines),
    ".ndjson": ("line", read_json_lines),
    ".parquet": ("row", read_parquet),
    ".pq": ("row", read_parquet),
}
