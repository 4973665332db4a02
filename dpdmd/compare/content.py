"""The content of the models and prompt files that a sweep's stage depends on, so that a change in place is seen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Options of a training that name what the run reads.
INPUTS = ("teacher_id", "student_id", "fake_id", "perceptual_path", "prompt_txt")


def training_inputs(options: Mapping[str, Any]) -> dict[str, Path]:
    """Return option -> path of what a training reads."""
    return {name: Path(options[name]) for name in INPUTS if options.get(name)}


def identify_inputs(inputs: Mapping[str, Path]) -> dict[str, str]:
    """Return name -> digest of the content. Paths without a whole model are left out: they are checked elsewhere."""
    from dpdmd.models.identity import digest, identify  # imports torch, which takes seconds
    from dpdmd.sampling.load_model import find_model
    from dpdmd.sampling.model_identity import identify_model

    found = {}
    for name, path in inputs.items():
        try:
            if path.is_dir() and name != "perceptual_path":
                found[name] = digest(identify_model(find_model(path, None)))
            else:
                found |= identify({name: path})
        except (ValueError, OSError):
            continue
    return found
