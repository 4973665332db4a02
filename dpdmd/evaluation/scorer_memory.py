"""The memory of the scorers' weights, from headers and file sizes: nothing is loaded."""

from collections.abc import Mapping
from pathlib import Path

from dpdmd.config.scorer_table import SCORERS
from dpdmd.evaluation.scorer_files import find_open_clip_weights, is_open_clip
from dpdmd.models.activation_memory import FP32
from dpdmd.models.layout import count_numbers
from dpdmd.models.weight_files import read_weight_shapes


def scorer_bytes(name: str, paths: Mapping[str, Path]) -> int:
    """Return the bytes of a scorer's weights in fp32; `paths` is flag -> path."""
    return sum(_file_bytes(paths[file.flag], file.loaded) for file in SCORERS[name].weights)


def _file_bytes(path: Path, prefix: str = "") -> int:
    """Return the bytes of a scorer's weights in fp32, of names with `prefix`: by their header, else by file size."""
    if path.is_dir() and is_open_clip(path):
        path = find_open_clip_weights(path)
    if path.is_file():
        return path.stat().st_size
    shapes = read_weight_shapes(path)
    return FP32 * count_numbers({name: shape for name, shape in shapes.items() if name.startswith(prefix)})
