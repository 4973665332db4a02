"""The folder layout that GenEval reads (github.com/djghosh13/geneval): scripts/run_geneval.md.

OUT/00000/metadata.jsonl  samples/0000.png ... 0003.png  grid.png; OUT/pictures.json holds the sampling settings.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from dpdmd.sampling.image_folder import SAMPLES, SETTINGS_FILE, read_settings
from dpdmd.utils.atomic_files import is_temporary
from dpdmd.utils.paths import is_system_file
from dpdmd.utils.text_files import check_prompt, read_text

NUM_IMAGES = 4  # per prompt, as in GenEval
REQUIRED = ("tag", "prompt")  # keys of each line that GenEval's evaluation reads


@dataclass(frozen=True)
class Entry:
    """A line of evaluation_metadata.jsonl, and its prompt."""

    line: str
    prompt: str


def read_metadata(path: Path) -> list[Entry]:
    """Read the entries of GenEval's evaluation_metadata.jsonl. Folder N holds the images of entry N.

    Raises:
        ValueError: the file cannot be read, a line is not a JSON object with a tag and a prompt, or the prompt is not
            Unicode, has no visible letter, or is a whole document; names file and line.
    """
    try:
        lines = read_text(path, "utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--geneval {path}: cannot be read ({reason}); give evaluation_metadata.jsonl") from None
    return [_entry(line.strip(), f"--geneval {path}: line {number}") for number, line in enumerate(lines, 1)]


def _entry(line: str, place: str) -> Entry:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError(f"{place} is no JSON; give GenEval's evaluation_metadata.jsonl") from None
    for key in REQUIRED:
        if not isinstance(values, dict) or not isinstance(values.get(key), str) or not values[key].strip():
            raise ValueError(f"{place} has no {key!r}; give GenEval's evaluation_metadata.jsonl")
    check_prompt(values["prompt"], f"{place}: its prompt")
    return Entry(line, values["prompt"])


def check_folder(out: Path) -> None:
    """Check that `out` is empty or holds the images of an earlier call.

    Raises:
        ValueError: it holds other files, which GenEval would evaluate too, or its settings cannot be read.
    """
    read_settings(out, "--out")
    found = out.iterdir() if out.is_dir() else ()
    others = [path for path in found if not is_temporary(path) and not is_system_file(path)]
    if others and not (out / SETTINGS_FILE).is_file():
        raise ValueError(f"--out {out}: holds files that are not this program's; give another folder")


def folder_of(out: Path, index: int) -> Path:
    """Return the folder of an entry."""
    return out / f"{index:05d}"


def sample_of(out: Path, index: int, sample: int) -> Path:
    """Return the path of an image of an entry."""
    return folder_of(out, index) / SAMPLES / f"{sample:04d}.png"
