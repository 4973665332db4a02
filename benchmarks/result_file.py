"""The dated result files of this folder: what, when, how and on which machine, then the table; numbers beside it."""

import datetime
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpdmd.utils.atomic_files import write_json, write_text
from dpdmd.utils.versions import versions


def result_head(title: str, about: str = "") -> list[str]:
    """Return the first lines: the title with the date, the command, and `about` (the machine) with the versions."""
    return [
        f"# {title} ({datetime.date.today().isoformat()})",
        "",
        f"`{shlex.join(['python', *sys.argv])}`",
        "",
        f"{about or describe_cpu()}; {used_versions()}",
        "",
    ]


def describe_cpu(threads: int | None = None) -> str:
    """Return the cores and the memory of this machine, and the threads in use if they are given."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    plural = "s" if threads != 1 else ""
    used = f"{threads} thread{plural} of " if threads else ""
    return f"CPU, {used}{os.cpu_count()} cores, {memory / 1e9:.1f} GB of memory"


def used_versions() -> str:
    return ", ".join(f"{package} {version}" for package, version in versions().items())


def write_result(out: Path, name: str, lines: Sequence[str], values: Any = None) -> str:
    """Write `lines` to OUT/DATE_NAME.md, and `values`, unless None, beside it as JSON; return the text."""
    path, text = out / f"{datetime.date.today().isoformat()}_{name}", "\n".join(lines).rstrip("\n") + "\n"
    write_text(path.with_name(f"{path.name}.md"), text)
    if values is not None:
        write_json(path.with_name(f"{path.name}.json"), values)
    return text
