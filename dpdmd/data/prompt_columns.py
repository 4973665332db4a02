"""The columns of a table that hold prompts and their weights, and the checked prompts of its rows.

Errors name neither the flag nor the file: `read_prompts` adds them.
"""

import math
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dpdmd.utils.text_files import MAX_PROMPT_LETTERS, check_prompt_length, is_utf8, is_visible

CANDIDATES = ("prompt", "caption", "text")
ADVICE = "give a text file, one prompt per line"
_SHOWN = 20  # columns named in an error
_LINE_BREAK = re.compile(r"\s*[\r\n]\s*")


@dataclass(frozen=True)
class Columns:
    """The columns that a user names.

    Attributes:
        prompt: column of the prompts; None to guess it.
        weight: column of their weights; None without weights.
    """

    prompt: str | None = None
    weight: str | None = None

    def choose(self, names: Sequence[str]) -> tuple[str, str | None]:
        """Return the columns of the prompts and of the weights among a table's columns.

        Raises:
            ValueError: no such column, or several.
        """
        if self.weight is None:
            return choose_column(names, self.prompt), None
        if names.count(self.weight) != 1:
            found = "no column" if self.weight not in names else "several columns named"
            raise ValueError(f"has {found} {self.weight!r} (--prompt_weight_column); its columns are {listed(names)}")
        others = names if self.prompt == self.weight else [name for name in names if name != self.weight]
        return choose_column(others, self.prompt), self.weight


def listed(names: Sequence[str]) -> str:
    """Return the names of columns for a message, the first ones of many."""
    return ", ".join(repr(name[:40]) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def fitting(names: Iterable[str], wanted: str | None) -> list[str]:
    """Return the columns that may be the prompts."""
    return [name for name in names if (name.strip().lower() in CANDIDATES if wanted is None else name == wanted)]


def choose_column(names: Sequence[str], wanted: str | None) -> str:
    """Return the column of the prompts: `wanted`, or the only one whose name is in CANDIDATES, in any case.

    Raises:
        ValueError: no such column, or several.
    """
    shown = listed(names)
    if wanted is not None and names and wanted not in names:
        raise ValueError(f"has no column {wanted!r} (--prompt_column); its columns are {shown}")
    if not names:
        raise ValueError(f"has no column of texts; {ADVICE}")
    found = fitting(names, wanted)
    if not found:
        raise ValueError(f"no column is named {', '.join(CANDIDATES)}; give --prompt_column, one of {shown}")
    if len(set(found)) > 1:
        raise ValueError(f"several columns may be the prompts; give --prompt_column, one of {', '.join(found)}")
    if len(found) > 1:
        raise ValueError(f"{len(found)} columns are named {found[0]!r}; rename all but one")
    return found[0]


def prompts_of_table(rows: Iterable[tuple[int, Any, Any]], unit: str, *, weighted: bool) -> tuple[list[str], array]:
    """Return the prompts of rows and their weights. A line break becomes a space, and empty values are skipped.

    Prompts of weight 0 are skipped, too. The weights are empty if not `weighted`.

    Raises:
        ValueError: a value is not text, is not Unicode, contains zero bytes, or is longer than a prompt; or a weight is
            no finite number, at least 0.
    """
    prompts, weights, unused = [], array("d"), 0
    for number, value, weight in rows:
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
        if not is_utf8(prompt):
            raise ValueError(f"{unit} {number} holds half of a surrogate pair, which is not Unicode text")
        if is_visible(prompt):
            if weighted:
                if not (found := _parse_weight(weight, f"{unit} {number}")):
                    unused += 1
                    continue
                weights.append(found)
            prompts.append(prompt)
    if unused and not prompts:
        raise ValueError("every weight is 0, so no prompt is ever drawn (--prompt_weight_column)")
    return prompts, weights


def _parse_weight(value: Any, place: str) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        what = "no weight" if value is None else f"the weight {str(value)[:40]!r}"
        raise ValueError(f"{place} has {what}; it must be a number, at least 0 (--prompt_weight_column)")
    return weight
