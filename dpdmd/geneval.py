"""Pictures in the folder layout that GenEval reads (github.com/djghosh13/geneval): scripts/run_geneval.md.

OUT/00000/metadata.jsonl  samples/0000.png ... 0003.png  grid.png; OUT/pictures.json notes how they were made.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpdmd.evaluation.pictures import MANIFEST, fingerprint, is_whole, keep_or_refuse, open_picture, read_manifest
from dpdmd.families.base import TextEncoder
from dpdmd.grids import labelled_grid, save_picture, to_pil
from dpdmd.run_folder import write_text
from dpdmd.sampling import Sampler, batches_of

NUM_IMAGES = 4  # GenEval's
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
        lines = path.read_text(encoding="utf-8").rstrip().split("\n")
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
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file():
        raise ValueError(f"--out {out}: holds files that are not this program's; give another folder")


def fill(
    sampler: Sampler,
    encoder: TextEncoder,
    entries: Sequence[Entry],
    out: Path,
    settings: dict[str, Any],
    *,
    num_images: int,
    batch_size: int,
    seed: int,
) -> None:
    """Make what is not there yet of `num_images` pictures an entry; one command goes on where another was killed.

    A batch is made whole or not at all, since a picture's last bits may depend on the batch that it was made in.

    Args:
        settings: whatever else decides the pictures.

    Raises:
        ValueError: `out` holds pictures of other settings.
    """
    prompts = [entry.prompt for entry in entries]
    noted = {**settings, **sampler.settings.as_dict(), "seed": seed, "num_images": num_images, "batch_size": batch_size}
    keep_or_refuse(out, {**noted, "prompts": fingerprint(prompts)}, "--out")
    for index, entry in enumerate(entries):
        write_text(_folder(out, index) / "metadata.jsonl", entry.line + "\n")
    batches = batches_of(len(prompts), num_images, batch_size)
    todo = [batch for batch in batches if not all(is_whole(_sample(out, *key)) for key in batch)]
    for keys, pictures in sampler.sweep(encoder, prompts, todo, seed, progress="generating"):
        for key, picture in zip(keys, to_pil(pictures), strict=True):
            save_picture(picture, _sample(out, *key))
    columns = max(1, round(num_images**0.5))
    for index, prompt in enumerate(prompts):
        row = [open_picture(_sample(out, index, sample)) for sample in range(num_images)]
        save_picture(labelled_grid([row], [prompt], columns=columns), _folder(out, index) / "grid.png")


def _folder(out: Path, index: int) -> Path:
    return out / f"{index:05d}"


def _sample(out: Path, index: int, sample: int) -> Path:
    return _folder(out, index) / "samples" / f"{sample:04d}.png"
