"""The content of the models and prompt files that a sweep's stage depends on, so that a change in place is seen."""

import os.path
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_parsing = threading.Lock()  # parsing a command runs a root program's file, and stages start in several threads
# Options of a training that name what the run reads.
INPUTS = ("teacher_id", "student_id", "fake_id", "perceptual_path", "prompt_txt")


def training_inputs(options: Mapping[str, Any]) -> dict[str, Path]:
    """Return option -> path of what a training reads."""
    return {name: Path(options[name]) for name in INPUTS if options.get(name)}


def measure_inputs(command: Sequence[str]) -> dict[str, Path]:
    """Return word -> path of the scorers and prompt files that a measure's command names, also as --flag=word."""
    words = [word.partition("=")[2] if word.startswith("--") and "=" in word else word for word in command]
    return {word: Path(word) for word in words if not word.endswith(".py") and os.path.exists(word)}


def parsed_inputs(command: Sequence[str]) -> dict[str, Path]:
    """Return flag -> path of what the command of a known program reads, by its own defaults too.

    A command that cannot be parsed has none, since it is checked elsewhere.
    """
    from dpdmd.compare.measure_commands import parse_command  # imports torch, which takes seconds

    with _parsing, suppress(ValueError):
        if parsed := parse_command(command):
            return parsed.inputs()
    return {}


def identify_inputs(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Return name -> digest of the content. What cannot be read is left out, since it is checked elsewhere."""
    from dpdmd.models.identity import digest, identify  # imports torch, which takes seconds
    from dpdmd.sampling.find_model import find_model
    from dpdmd.sampling.model_identity import identify_model

    found = {}
    for name, path in inputs.items():
        try:
            found |= identify({name: path}) if path.exists() else {}
            found[name] = digest(identify_model(find_model(path, None)))  # a run or a pipeline is more than a folder
        except (ValueError, OSError):
            continue
    return found
