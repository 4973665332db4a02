"""Changes to the files of a model's folder."""

import json
from collections.abc import Callable, Iterable
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


def as_variant(folder: Path, names: Iterable[str] | None = None, *, keep: bool = False) -> None:
    """Give weights the names of the variant fp16, and half the bits; all of a pipeline without `names`.

    Args:
        keep: whether the full ones stay beside them.
    """
    for path in [folder / name for name in names] if names else sorted(folder.glob("*/*.safetensors")):
        half = {key: value.half() for key, value in load_file(path).items()}
        save_file(half, path.with_suffix(".fp16.safetensors"), {"format": "pt"})
        if not keep:
            path.unlink()
