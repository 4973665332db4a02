"""A root program's command line after its checks: what is left to do. Imports nothing heavy."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpdmd.sampling.image_folder import ImageFile

IMAGES = "pictures"  # of the output folder: what a model made


@dataclass(frozen=True)
class Job:
    """A checked command line.

    Attributes:
        args: the flags.
        paths: scorer -> its files.
        options: scorer -> options of its class.
        prompts: those of --prompts_txt.
        found: the images of --images; empty where a model makes them.
        out: the output folder.
    """

    args: argparse.Namespace
    paths: dict[str, dict[str, Path]]
    options: dict[str, dict[str, Any]]
    prompts: list[str]
    found: list[ImageFile]
    out: Path
