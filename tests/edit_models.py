"""Changes to the files of a model's folder."""

import json
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

MODEL, DIFFUSION = "model.safetensors", "diffusion_pytorch_model.safetensors"  # the libraries' names


def rewrite_weights(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Load a weights file, let `change` edit its tensors in place, and save it again."""
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def set_json(path: Path, **values: object) -> None:
    """Set some values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
