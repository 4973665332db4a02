"""The folder layout that GenEval reads (github.com/djghosh13/geneval): scripts/run_geneval.md.

OUT/00000/metadata.jsonl  samples/0000.png ... 0003.png  grid.png; OUT/pictures.json notes how they were made.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from dpdmd.sampling.image_folder import MANIFEST, read_manifest
from dpdmd.utils.atomic_files import is_temporary
from dpdmd.utils.text_files import read_text

NUM_IMAGES = 4  # GenEval's
SAMPLES = "samples"
NEEDED = ("tag", "prompt")  # of each line: what its evaluation reads of all of them


@dataclass(frozen=True)
class Entry:
    """One line of evaluation_metadata.jsonl: as it stands, and its prompt."""

    line: str
    prompt: str


def read_metadata(path: Path) -> list[Entry]:
    """The entries of GenEval's evaluation_metadata.jsonl, in file order: the N-th goes into folder N.

    Raises:
        ValueError: cannot be read, or a line that is no JSON object with a tag and a prompt; names file and line.
    """
    try:
        lines = read_text(path, "utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        told = getattr(error, "strerror", None) or error
        raise ValueError(f"--geneval {path}: cannot be read ({told}); give evaluation_metadata.jsonl") from None
    return [_entry(line.strip(), f"--geneval {path}: line {number}") for number, line in enumerate(lines, 1)]


def _entry(line: str, place: str) -> Entry:
    try:
        values = json.loads(line)
    except ValueError:
        raise ValueError(f"{place} is no JSON; give GenEval's evaluation_metadata.jsonl") from None
    for key in NEEDED:
        if not isinstance(values, dict) or not isinstance(values.get(key), str) or not values[key].strip():
            raise ValueError(f"{place} has no {key!r}; give GenEval's evaluation_metadata.jsonl")
    return Entry(line, values["prompt"])


def check_folder(out: Path) -> None:
    """Whether `out` is free, or holds what an earlier call left there.

    Raises:
        ValueError: it holds something else, which GenEval would take for ours, or its note cannot be read.
    """
    read_manifest(out, "--out")
    others = [path for path in out.iterdir() if not is_temporary(path)] if out.is_dir() else []
    if others and not (out / MANIFEST).is_file():  # that one alone is of a call that was killed at its start
        raise ValueError(f"--out {out}: holds files that are not this program's; give another folder")


def folder_of(out: Path, index: int) -> Path:
    """The folder of entry `index`."""
    return out / f"{index:05d}"


def sample_of(out: Path, index: int, sample: int) -> Path:
    """One of its images."""
    return folder_of(out, index) / SAMPLES / f"{sample:04d}.png"
