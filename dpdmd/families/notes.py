"""`dpdmd.json`, the note beside a pipeline or a LoRA that says how it wants to be sampled."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dpdmd.weight_files import read_json

NOTE = "dpdmd.json"  # beside model_index.json


@dataclass(frozen=True)
class Note:
    """How a folder wants to be sampled: what its family's layout says, unless its `dpdmd.json` says otherwise.

    Attributes:
        sigmas: the exact grid [steps + 1], final 0 included, where it is not the scheduler's own.
        grid: name of the grid (`schedules.GRIDS`) on which it takes any other number of steps.
        shift: the model's own shift, where its scheduler's file holds 1 because `sigmas` are shifted already.
        base: pipeline folder that a LoRA changes; None in a pipeline folder.
        no_t5: it was trained with `--no_t5`, and its folder holds no T5.
    """

    steps: int = 30
    guidance_scale: float = 3.5
    max_sequence_length: int = 256
    sigmas: tuple[float, ...] | None = None
    grid: str = "default"
    shift: float | None = None
    base: str | None = None
    no_t5: bool = False

    def write(self, folder: Path) -> None:
        """Save beside the pipeline; diffusers passes over files it does not know."""
        (folder / NOTE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def read_note(folder: Path, default: Note) -> Note:
    """The folder's note, or `default`, its family's.

    Raises:
        ValueError: the note is unreadable or holds unknown entries.
    """
    if not (folder / NOTE).exists():
        return default
    try:
        note = Note(**read_json(folder / NOTE))
    except TypeError as error:
        raise ValueError(f"{folder / NOTE}: not of this version ({error})") from None
    return replace(note, sigmas=tuple(note.sigmas) if note.sigmas else None)
