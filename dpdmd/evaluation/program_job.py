"""The checked command line of a root program: what `program.py` returns and `program_run.py` runs."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpdmd.sampling.image_folder import ImageFile


@dataclass(frozen=True)
class Job:
    """A checked command line of a root program.

    Attributes:
        args: the flags.
        model, base_model: local paths of these flags; None if `images` are scored.
        paths: scorer -> flag -> path.
        options: scorer -> further arguments of its class.
        prompts: of --prompts_txt; empty if no scorer needs them.
        images: of --images; empty if a model generates them.
        note: one line on an assumption about the prompts of `images`, or "".
        out: the output folder.
    """

    args: argparse.Namespace
    model: Path | None
    base_model: Path | None
    paths: dict[str, dict[str, Path]]
    options: dict[str, dict[str, Any]]
    prompts: list[str]
    images: list[ImageFile]
    note: str
    out: Path
